#include "keep_windows.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "../core/memory.h"
#include "../core/parallel.h"
#include "../core/simd.h"
#include "../core/stream.h"

namespace pycc::keep_windows {
namespace {

constexpr std::int64_t kLarge = 1 << 23;  // floats, 32 MiB: larger than most caches

// The place of a window. A row is, in order: kept [0, wrapped), fill, kept [begin, end), fill.
struct Window {
    Window(const std::int64_t* top_left /* [2] */, const Sizes& sizes)
        : top(floor_modulo(top_left[0], sizes.height)),
          begin(floor_modulo(top_left[1], sizes.width)),
          end(std::min(begin + sizes.window_width, sizes.width)),
          wrapped(std::max<std::int64_t>(begin + sizes.window_width - sizes.width, 0)) {}
    std::int64_t top, begin, end, wrapped;
};

void copy_run(float* out /* [W] */, const float* image /* [W] */, std::int64_t begin,
              std::int64_t end) {
    std::memcpy(out + begin, image + begin, static_cast<std::size_t>(end - begin) * sizeof(float));
}

// Prefetches a short run; hardware prefetches long reads, but not short runs a row apart.
void prefetch_run([[maybe_unused]] const float* row /* [W] */,
                  [[maybe_unused]] const Window& window) {
#if defined(__GNUC__)
    constexpr std::int64_t kLine = 16, kShort = 512;  // floats: a cache line, half a page
    if (window.end - window.begin > kShort) return;
    for (std::int64_t x = window.begin; x < window.end; x += kLine) __builtin_prefetch(row + x);
#endif
}

// Writes rows [first, last) of one channel of one result. A row is assembled in `line` and copied
// from there, so that full cache lines are written to memory.
void keep_rows(float* out /* [H,W] */, const float* image /* [H,W] */, const Window& window,
               const float* blank /* [W], all fill */, float* line /* [W], overwritten */,
               std::int64_t first, std::int64_t last, const Sizes& sizes, bool large) {
    constexpr std::int64_t kAhead = 8;  // rows
    const std::int64_t width = sizes.width;
    const auto kept = [&](std::int64_t y) {
        return in_window(y, window.top, sizes.window_height, sizes.height);
    };
    copy_run(line, blank, 0, width);
    for (std::int64_t y = first; y < last; ++y) {
        const float* source = image + y * width;
        if (y + kAhead < last && kept(y + kAhead)) prefetch_run(source + kAhead * width, window);
        if (kept(y)) {
            copy_run(line, source, 0, window.wrapped);
            copy_run(line, source, window.begin, window.end);
        }
        const float* row = kept(y) ? line : blank;
        if (large) {
            stream_copy(out + y * width, row, width);
        } else {
            copy_run(out + y * width, row, 0, width);
        }
    }
}

PYCC_SIMD void add_run(float* __restrict__ sum, const float* __restrict__ grad, std::int64_t begin,
                       std::int64_t end) noexcept {
    for (std::int64_t x = begin; x < end; ++x) sum[x] += grad[x];
}

// Calls body(plane, first, last) on the rows [first, last) of each plane of H rows that the range
// [begin, end) of all rows covers.
template <class Body>
void for_planes(std::int64_t begin, std::int64_t end, std::int64_t height, const Body& body) {
    for (std::int64_t row = begin; row < end;) {
        const std::int64_t plane = row / height, first = row % height;
        const std::int64_t last = std::min(first + end - row, height);
        body(plane, first, last);
        row += last - first;
    }
}

// Rows per thread, for 0.2 ms of writing or more.
std::int64_t row_grain(const Sizes& sizes) {
    return std::max<std::int64_t>((1 << 20) / sizes.width, 1);
}

}  // namespace

void cpu(float* out /* [N*M,C,H,W] */, const float* images /* [N,C,H,W] */,
         const std::int64_t* top_left /* [M,2] (y, x) */, const float* fill /* [C] */,
         const Sizes& sizes, int threads) {
    const std::int64_t plane_size = sizes.height * sizes.width;
    const std::int64_t planes = sizes.images * sizes.windows * sizes.channels;
    if (planes * plane_size == 0) return;
    expect_large_write(out, static_cast<std::size_t>(planes * plane_size) * sizeof(float));
    const bool large = planes * plane_size > kLarge;
    const auto keep = [&](std::int64_t begin, std::int64_t end) {
        std::vector<float> blank(static_cast<std::size_t>(sizes.width)), line(blank);
        const auto keep_plane = [&](std::int64_t plane, std::int64_t first, std::int64_t last) {
            const std::int64_t c = plane % sizes.channels, row = plane / sizes.channels;
            const std::int64_t n = row / sizes.windows, m = row % sizes.windows;
            std::fill(blank.begin(), blank.end(), fill[c]);
            keep_rows(out + plane * plane_size, images + (n * sizes.channels + c) * plane_size,
                      Window(top_left + 2 * m, sizes), blank.data(), line.data(), first, last,
                      sizes, large);
        };
        for_planes(begin, end, sizes.height, keep_plane);
        stream_fence();
    };
    parallel_for(planes * sizes.height, row_grain(sizes), threads, keep);
}

void backward_cpu(float* grad_images /* [N,C,H,W] */, const float* grad_out /* [N*M,C,H,W] */,
                  const std::int64_t* top_left /* [M,2] (y, x) */, const Sizes& sizes,
                  int threads) {
    const std::int64_t width = sizes.width, plane_size = sizes.height * width;
    const std::int64_t planes = sizes.images * sizes.channels;
    if (planes * plane_size == 0) return;
    expect_large_write(grad_images, static_cast<std::size_t>(planes * plane_size) * sizeof(float));
    std::vector<Window> windows;
    for (std::int64_t m = 0; m < sizes.windows; ++m) windows.emplace_back(top_left + 2 * m, sizes);
    const auto sum_rows = [&](std::int64_t plane, std::int64_t first, std::int64_t last) {
        const std::int64_t n = plane / sizes.channels, c = plane % sizes.channels;
        const float* grad = grad_out + (n * sizes.windows * sizes.channels + c) * plane_size;
        float* sum = grad_images + plane * plane_size;
        for (std::int64_t y = first; y < last; ++y) {  // a row of sums stays in the cache
            std::fill(sum + y * width, sum + (y + 1) * width, 0.0F);
            const float* row = grad + y * width;
            for (const Window& window : windows) {
                if (in_window(y, window.top, sizes.window_height, sizes.height)) {
                    add_run(sum + y * width, row, 0, window.wrapped);
                    add_run(sum + y * width, row, window.begin, window.end);
                }
                row += sizes.channels * plane_size;
            }
        }
    };
    parallel_for(planes * sizes.height, row_grain(sizes), threads,
                 [&](std::int64_t begin, std::int64_t end) {
                     for_planes(begin, end, sizes.height, sum_rows);
                 });
}

}  // namespace pycc::keep_windows
