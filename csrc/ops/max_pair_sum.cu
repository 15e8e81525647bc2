#include "../core/cuda.cuh"
#include "max_pair_sum.h"

namespace pycc {
namespace {

constexpr int kThreads = 256;
using Bits = unsigned long long;
constexpr Bits kNone = ~Bits{0};

// Sums that are not negative are ordered as their bits are.
__device__ Bits bits_of(double sum) {
    return static_cast<Bits>(__double_as_longlong(sum));
}

// The best of what the threads of a block offer, for all of them: the largest sum, of equal ones
// the lowest index. A thread that has none offers the index -1. Maxima and minima do not depend on
// the order in which threads come.
__device__ BestWindow best_of_block(const BestWindow& own) {
    __shared__ Bits most, lowest;
    __syncthreads();  // an earlier call's result has been read
    if (threadIdx.x == 0) most = 0, lowest = kNone;
    __syncthreads();
    if (own.index >= 0) atomicMax(&most, bits_of(own.sum));
    __syncthreads();
    if (own.index >= 0 && bits_of(own.sum) == most) {
        atomicMin(&lowest, static_cast<Bits>(own.index));
    }
    __syncthreads();
    return {__longlong_as_double(static_cast<long long>(most)),
            lowest == kNone ? -1 : static_cast<std::int64_t>(lowest)};
}

// One thread a row of cells: sums from the left.
__global__ void table_rows_kernel(double* __restrict__ tables, const float* __restrict__ maps,
                                  SumSizes sizes) {
    const std::int64_t pitch = sizes.width + 1, work = sizes.maps * sizes.height;
    for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < work;
         i += std::int64_t{gridDim.x} * kThreads) {
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

// One thread a column of the table: rows from above.
__global__ void table_columns_kernel(double* __restrict__ tables, SumSizes sizes) {
    const std::int64_t pitch = sizes.width + 1, work = sizes.maps * pitch;
    for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < work;
         i += std::int64_t{gridDim.x} * kThreads) {
        double* column = tables + i / pitch * (sizes.height + 1) * pitch + i % pitch;
        double sum = 0.0;
        column[0] = sum;
        for (std::int64_t y = 1; y <= sizes.height; ++y) {
            sum = sum + column[y * pitch];
            column[y * pitch] = sum;
        }
    }
}

// What the kernels that follow read of one map.
struct Windows {
    Table table;
    const double* sums /* [rows * cols] */;
    SumSizes sizes;

    __device__ Windows(const double* tables, const double* all_sums, const SumSizes& of,
                       std::int64_t n)
        : table{tables + n * (of.height + 1) * (of.width + 1), of.width + 1},
          sums(all_sums + n * of.rows() * of.cols()),
          sizes(of) {}

    __device__ Place place(std::int64_t i) const { return {i / sizes.cols(), i % sizes.cols()}; }
    __device__ double united(std::int64_t a, std::int64_t b) const {
        return union_sum(table, sizes, place(a), sums[a], place(b), sums[b]);
    }
};

// One block a map: the sums of all windows, the fullest, and what it holds with its best partner.
__global__ void __launch_bounds__(kThreads)
    windows_kernel(double* sums, BestWindow* __restrict__ fullest, double* __restrict__ least,
                   const double* __restrict__ tables, SumSizes sizes) {
    const std::int64_t count = sizes.rows() * sizes.cols();
    for (std::int64_t n = blockIdx.x; n < sizes.maps; n += gridDim.x) {
        const Windows windows(tables, sums, sizes, n);
        BestWindow own{0.0, -1};
        for (std::int64_t i = threadIdx.x; i < count; i += kThreads) {
            const Place at = windows.place(i);
            const double sum = windows.table.sum(at.y, at.y + sizes.window_height, at.x,
                                                 at.x + sizes.window_width);
            sums[n * count + i] = sum;
            own.offer(sum, i);
        }
        const BestWindow best = best_of_block(own);  // and the sums are written, for all threads
        own = {best.sum, best.index};
        for (std::int64_t i = threadIdx.x; i < count; i += kThreads) {
            own.offer(windows.united(best.index, i), i);
        }
        const BestWindow pair = best_of_block(own);
        if (threadIdx.x == 0) fullest[n] = best, least[n] = pair.sum;
    }
}

// One block a window: its best partner among those after it, unless they stay below a pair that is
// known. A union is at most the sum of both, rounded or not.
__global__ void __launch_bounds__(kThreads)
    pairs_kernel(WindowPair* __restrict__ found, const double* __restrict__ tables,
                 const double* __restrict__ sums, const BestWindow* __restrict__ fullest,
                 const double* __restrict__ least, SumSizes sizes) {
    const std::int64_t count = sizes.rows() * sizes.cols();
    for (std::int64_t row = blockIdx.x; row < sizes.maps * count; row += gridDim.x) {
        const std::int64_t n = row / count, a = row % count;
        const Windows windows(tables, sums, sizes, n);
        const double sum = windows.sums[a], known = least[n];
        BestWindow own{0.0, -1};
        if (sum + fullest[n].sum >= known) {  // the same for all threads of a block
            for (std::int64_t b = a + 1 + threadIdx.x; b < count; b += kThreads) {
                if (sum + windows.sums[b] < known) continue;
                const double both = windows.united(a, b);
                if (both >= known) own.offer(both, b);
            }
            own = best_of_block(own);
        }
        if (threadIdx.x == 0) found[row] = {own.sum, own.index < 0 ? -1 : a, own.index};
    }
}

// One block a map.
__global__ void __launch_bounds__(kThreads)
    settle_kernel(double* __restrict__ value, std::int64_t* __restrict__ places,
                  const WindowPair* __restrict__ found, const BestWindow* __restrict__ fullest,
                  const double* __restrict__ allowance, SumSizes sizes) {
    const std::int64_t count = sizes.rows() * sizes.cols();
    for (std::int64_t n = blockIdx.x; n < sizes.maps; n += gridDim.x) {
        const WindowPair* pairs = found + n * count;
        BestWindow own{0.0, -1};
        for (std::int64_t a = threadIdx.x; a < count; a += kThreads) {
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

void max_pair_sum_cuda(double* value, std::int64_t* places, double* tables, double* sums,
                       WindowPair* found, BestWindow* fullest, double* least, const float* maps,
                       const double* allowance, const SumSizes& sizes, cudaStream_t stream) {
    if (sizes.maps == 0) return;
    const std::int64_t rows = sizes.maps * sizes.height, columns = sizes.maps * (sizes.width + 1);
    table_rows_kernel<<<strided_blocks(rows, kThreads), kThreads, 0, stream>>>(tables, maps, sizes);
    check_launch("max_pair_sum rows");
    // The row above the map is written here, the column beside it by the rows.
    table_columns_kernel<<<strided_blocks(columns, kThreads), kThreads, 0, stream>>>(tables, sizes);
    check_launch("max_pair_sum columns");
    const unsigned int each_map = strided_blocks(sizes.maps, 1);
    windows_kernel<<<each_map, kThreads, 0, stream>>>(sums, fullest, least, tables, sizes);
    check_launch("max_pair_sum windows");
    const std::int64_t windows = sizes.maps * sizes.rows() * sizes.cols();
    pairs_kernel<<<strided_blocks(windows, 1), kThreads, 0, stream>>>(found, tables, sums, fullest,
                                                                      least, sizes);
    check_launch("max_pair_sum pairs");
    settle_kernel<<<each_map, kThreads, 0, stream>>>(value, places, found, fullest, allowance,
                                                     sizes);
    check_launch("max_pair_sum");
}

}  // namespace pycc
