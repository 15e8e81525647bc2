// Huge pages for large new buffers, and aligned scratch memory for SIMD loops.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pycc {

// Requests huge pages for a large buffer: a new buffer then costs one page fault per 2 MiB instead
// of one per 4 KiB, which is most of the time of filling it. The content does not change.
inline void expect_large_write([[maybe_unused]] void* buffer /* [bytes] */,
                               [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr std::uintptr_t kHuge = std::uintptr_t{1} << 21;
    const auto begin = (reinterpret_cast<std::uintptr_t>(buffer) + kHuge - 1) / kHuge * kHuge;
    const auto end = (reinterpret_cast<std::uintptr_t>(buffer) + bytes) / kHuge * kHuge;
    if (bytes >= 4 * kHuge && end > begin) {
        madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: may fail
    }
#endif
}

// Scratch memory aligned to cache lines, so that no SIMD vector straddles two. For numbers only.
template <class T>
class AlignedScratch {
  public:
    AlignedScratch() = default;
    AlignedScratch(const AlignedScratch&) = delete;
    AlignedScratch& operator=(const AlignedScratch&) = delete;
    ~AlignedScratch() { release(); }

    // Ensures at least `count` values; if the memory has to grow, all values become 0.
    void reserve(std::int64_t count) {
        if (count <= count_) return;
        release();
        data_ = static_cast<T*>(
            ::operator new(static_cast<std::size_t>(count) * sizeof(T), std::align_val_t{kLine}));
        count_ = count;
        for (std::int64_t i = 0; i < count; ++i) data_[i] = T{};
    }
    T* data() { return data_; }
    const T* data() const { return data_; }

  private:
    static constexpr std::size_t kLine = 64;

    void release() {
        if (data_ != nullptr) ::operator delete(data_, std::align_val_t{kLine});
        data_ = nullptr, count_ = 0;
    }

    T* data_ = nullptr;
    std::int64_t count_ = 0;
};

}  // namespace pycc
