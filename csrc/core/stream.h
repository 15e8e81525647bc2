// Non-temporal stores for large results.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace pycc {

// Copies by non-temporal stores: full cache lines of `out` are written to memory without being read
// first and without evicting cached data. For results larger than the caches. The writing thread
// must call stream_fence() before another thread reads them.
inline void stream_copy(float* out /* [count] */, const float* from /* [count] */,
                        std::int64_t count) {
#if defined(__SSE2__)
    constexpr std::int64_t kLine = 16;  // floats in a cache line
    const auto misplaced = static_cast<std::int64_t>(
        reinterpret_cast<std::uintptr_t>(out) / sizeof(float) % static_cast<std::uintptr_t>(kLine));
    std::int64_t i = 0;
    for (; i < count && (misplaced + i) % kLine != 0; ++i) out[i] = from[i];
    for (; i + kLine <= count; i += kLine) {
        const __m128 a = _mm_loadu_ps(from + i), b = _mm_loadu_ps(from + i + 4);
        const __m128 c = _mm_loadu_ps(from + i + 8), d = _mm_loadu_ps(from + i + 12);
        _mm_stream_ps(out + i, a);
        _mm_stream_ps(out + i + 4, b);
        _mm_stream_ps(out + i + 8, c);
        _mm_stream_ps(out + i + 12, d);
    }
    for (; i < count; ++i) out[i] = from[i];
#else
    std::memcpy(out, from, static_cast<std::size_t>(count) * sizeof(float));
#endif
}

inline void stream_fence() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

}  // namespace pycc
