// Large buffers that are about to be written for the first time.
#pragma once

#include <cstddef>
#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pycc {

// Asks for huge pages under a large buffer: a fresh one then costs a page fault for 2 MiB, not for
// 4 KiB, which is most of the time of filling it. Changes no content; what is resident stays.
inline void expect_large_write([[maybe_unused]] void* buffer, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr std::uintptr_t kHuge = std::uintptr_t{1} << 21;
    const auto begin = (reinterpret_cast<std::uintptr_t>(buffer) + kHuge - 1) / kHuge * kHuge;
    const auto end = (reinterpret_cast<std::uintptr_t>(buffer) + bytes) / kHuge * kHuge;
    if (bytes >= 4 * kHuge && end > begin) {
        madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: may fail
    }
#endif
}

}  // namespace pycc
