#include "../core/cuda.cuh"
#include "max_pair_sum.h"

namespace pycc::max_pair_sum {
namespace {

constexpr int kThreads = 256;

// Returns the best value of the threads of a block, to all of them.
__device__ BestWindow best_of_block(const BestWindow& own) {
    return fold_block<kThreads>(own, window_sums::Better{});
}

// One thread per row of cells: sums from the left.
__global__ void table_rows_kernel(double* __restrict__ tables, const float* __restrict__ maps,
                                  Sizes sizes) {
    const std::int64_t pitch = sizes.width + 1, work = sizes.maps * sizes.height;
    for (const std::int64_t i : threads_of_grid(work)) {
        const std::int64_t n = i / sizes.height, y = i % sizes.height;
        const float* values = maps + i * sizes.width;
        double* row = tables + (n * (sizes.height + 1) + y + 1) * pitch;
        double sum = 0.0;
        row[0] = sum;
        for (std::int64_t x = 0; x < sizes.width; ++x) {
            sum += static_cast<double>(values[x]);
            row[x + 1] = sum;
        }
    }
}

// One thread per column of the table: adds rows from above.
__global__ void table_columns_kernel(double* __restrict__ tables, Sizes sizes) {
    const std::int64_t pitch = sizes.width + 1, work = sizes.maps * pitch;
    for (const std::int64_t i : threads_of_grid(work)) {
        double* column = tables + i / pitch * (sizes.height + 1) * pitch + i % pitch;
        double sum = 0.0;
        column[0] = sum;
        for (std::int64_t y = 1; y <= sizes.height; ++y) {
            sum = sum + column[y * pitch];
            column[y * pitch] = sum;
        }
    }
}

// The data of one map that the following kernels read.
struct Windows {
    Table table;
    const double* sums /* [rows * cols] */;
    Sizes sizes;

    __device__ Windows(const double* tables, const double* all_sums, const Sizes& of,
                       std::int64_t n)
        : table{tables + n * (of.height + 1) * (of.width + 1), of.width + 1},
          sums(all_sums + n * of.rows() * of.cols()),
          sizes(of) {}

    __device__ Place place(std::int64_t i) const { return {i / sizes.cols(), i % sizes.cols()}; }
    __device__ double united(std::int64_t a, std::int64_t b) const {
        return union_sum(table, sizes, place(a), sums[a], place(b), sums[b]);
    }
};

// One block per map: the sums of all windows, the fullest, and its union with its best partner.
__global__ void __launch_bounds__(kThreads)
    windows_kernel(double* sums, BestWindow* __restrict__ fullest, double* __restrict__ least,
                   const double* __restrict__ tables, Sizes sizes) {
    const std::int64_t count = sizes.rows() * sizes.cols();
    for (const std::int64_t n : blocks_of_grid(sizes.maps)) {
        const Windows windows(tables, sums, sizes, n);
        BestWindow own{0.0, -1};
        for (const std::int64_t i : threads_of_block(count)) {
            const Place at = windows.place(i);
            const double sum = windows.table.sum(at.y, at.y + sizes.window_height, at.x,
                                                 at.x + sizes.window_width);
            sums[n * count + i] = sum;
            own.offer(sum, i);
        }
        const BestWindow best = best_of_block(own);  // also a barrier: all sums are written
        own = {best.sum, best.index};
        for (const std::int64_t i : threads_of_block(count)) {
            own.offer(windows.united(best.index, i), i);
        }
        const BestWindow pair = best_of_block(own);
        if (threadIdx.x == 0) fullest[n] = best, least[n] = pair.sum;
    }
}

// One block per window: its best partner among later windows, unless their unions are below a known
// pair. A union is at most the sum of both windows, also after rounding.
__global__ void __launch_bounds__(kThreads)
    pairs_kernel(WindowPair* __restrict__ found, const double* __restrict__ tables,
                 const double* __restrict__ sums, const BestWindow* __restrict__ fullest,
                 const double* __restrict__ least, Sizes sizes) {
    const std::int64_t count = sizes.rows() * sizes.cols();
    for (const std::int64_t row : blocks_of_grid(sizes.maps * count)) {
        const std::int64_t n = row / count, a = row % count;
        const Windows windows(tables, sums, sizes, n);
        const double sum = windows.sums[a], known = least[n];
        BestWindow own{0.0, -1};
        if (sum + fullest[n].sum >= known) {  // the same for all threads of a block
            for (const std::int64_t b : threads_of_block(count, a + 1)) {
                if (sum + windows.sums[b] < known) continue;
                const double both = windows.united(a, b);
                if (both >= known) own.offer(both, b);
            }
            own = best_of_block(own);
        }
        if (threadIdx.x == 0) found[row] = {own.sum, own.index < 0 ? -1 : a, own.index};
    }
}

// One block per map.
__global__ void __launch_bounds__(kThreads)
    settle_kernel(double* __restrict__ value, std::int64_t* __restrict__ places,
                  const WindowPair* __restrict__ found, const BestWindow* __restrict__ fullest,
                  const double* __restrict__ allowance, Sizes sizes) {
    const std::int64_t count = sizes.rows() * sizes.cols();
    for (const std::int64_t n : blocks_of_grid(sizes.maps)) {
        const WindowPair* pairs = found + n * count;
        BestWindow own{0.0, -1};
        for (const std::int64_t a : threads_of_block(count)) {
            if (pairs[a].first >= 0) own.offer(pairs[a].sum, a);
        }
        const BestWindow best = best_of_block(own);
        if (threadIdx.x != 0) continue;
        WindowPair pair{fullest[n].sum, -1, -1};
        if (best.index >= 0 && best.sum > pair.sum) pair = pairs[best.index];
        settle(value + n, places + 4 * n, fullest[n], pair, allowance[n], sizes.cols());
    }
}

}  // namespace

void cuda(double* value /* [N] */, std::int64_t* places /* [N,2,2] (y, x) */,
          double* tables /* [N,h+1,w+1], scratch */, double* sums /* [N,rows,cols], scratch */,
          WindowPair* found /* [N,rows*cols], scratch */, BestWindow* fullest /* [N], scratch */,
          double* least /* [N], scratch */, const float* maps /* [N,h,w] */,
          const double* allowance /* [N] */, const Sizes& sizes, cudaStream_t stream) {
    if (sizes.maps == 0) return;
    const std::int64_t rows = sizes.maps * sizes.height, columns = sizes.maps * (sizes.width + 1);
    launch("max_pair_sum rows", table_rows_kernel, strided_blocks(rows, kThreads), kThreads, 0,
           stream, tables, maps, sizes);
    // The zero row above the map is written here, the zero column beside it by the rows.
    launch("max_pair_sum columns", table_columns_kernel, strided_blocks(columns, kThreads),
           kThreads, 0, stream, tables, sizes);
    const unsigned int each_map = strided_blocks(sizes.maps, 1);
    launch("max_pair_sum windows", windows_kernel, each_map, kThreads, 0, stream, sums, fullest,
           least, tables, sizes);
    const std::int64_t windows = sizes.maps * sizes.rows() * sizes.cols();
    launch("max_pair_sum pairs", pairs_kernel, strided_blocks(windows, 1), kThreads, 0, stream,
           found, tables, sums, fullest, least, sizes);
    launch("max_pair_sum", settle_kernel, each_map, kThreads, 0, stream, value, places, found,
           fullest, allowance, sizes);
}

}  // namespace pycc::max_pair_sum
