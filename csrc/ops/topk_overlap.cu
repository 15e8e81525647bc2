#include "../core/cuda.cuh"
#include "topk_overlap.h"

namespace pycc::topk_overlap {
namespace {

constexpr int kThreads = 512;
constexpr int kBits = 8;  // bits of the rank that one pass over the row determines
constexpr int kBins = 1 << kBits;

// The state of a block's search for a rank, in shared memory.
struct Search {
    std::uint32_t bins[kBins];
    std::uint32_t bin;     // the bin in which it lies
    std::uint32_t wanted;  // which of the bin's cells it is, from the largest
};

// The first warp finds the bin of the `wanted`-th largest cell; 1 <= wanted <= sum of the bins.
__device__ void find_bin(Search& search, std::uint32_t wanted) {
    constexpr int kEach = kBins / kWarp;
    const int lane = static_cast<int>(threadIdx.x);
    const int top = kBins - 1 - lane * kEach;  // lane 0 has the largest bins
    std::uint32_t own = 0;
    for (int i = 0; i < kEach; ++i) own += search.bins[top - i];
    std::uint32_t reached = own;
    for (int step = 1; step < kWarp; step *= 2) {
        const std::uint32_t before = __shfl_up_sync(kAllLanes, reached, step);
        if (lane >= step) reached += before;
    }
    std::uint32_t above = reached - own;
    if (above >= wanted || reached < wanted) return;  // in the bins of another lane
    int bin = top;
    for (; above + search.bins[bin] < wanted; --bin) above += search.bins[bin];
    search.bin = static_cast<std::uint32_t>(bin);
    search.wanted = wanted - above;
}

// Returns the k-th largest rank of a row, or a lower one that exactly k cells reach;
// 1 <= k <= cells. All threads of the block must call it and get the same result.
__device__ std::uint64_t least_rank(const float* __restrict__ row, std::int64_t cells,
                                    std::int64_t k, Search& search) {
    auto wanted = static_cast<std::uint32_t>(k);
    std::uint64_t settled = 0;
    for (int shift = 64 - kBits; shift >= 0; shift -= kBits) {
        for (const std::int64_t i : threads_of_block(kBins)) search.bins[i] = 0;
        __syncthreads();
        // Full warps iterate together: equal digits, which are common, are counted at once.
        for (std::int64_t first = 0; first < cells; first += kThreads) {
            const std::int64_t i = first + threadIdx.x;
            std::uint64_t rank = 0;
            bool counts = i < cells;
            if (counts) {
                rank = cell_rank(row[i], static_cast<std::uint32_t>(i));
                counts = shift == 64 - kBits || ((rank ^ settled) >> (shift + kBits)) == 0;
            }
            const unsigned int counting = __ballot_sync(kAllLanes, counts);
            if (!counts) continue;
            const auto digit = static_cast<unsigned int>(rank >> shift) & (kBins - 1);
#if __CUDA_ARCH__ >= 700  // one addition for all threads of the warp with this digit
            const unsigned int same = __match_any_sync(counting, digit);
            if (threadIdx.x % kWarp == static_cast<unsigned int>(__ffs(static_cast<int>(same))) - 1)
                atomicAdd(&search.bins[digit], static_cast<std::uint32_t>(__popc(same)));
#else
            atomicAdd(&search.bins[digit], 1U);
#endif
        }
        __syncthreads();
        if (threadIdx.x < kWarp) find_bin(search, wanted);
        __syncthreads();
        settled |= static_cast<std::uint64_t>(search.bin) << shift;
        wanted = search.wanted;
        const bool whole = search.bins[search.bin] == wanted;  // all are among the k largest
        __syncthreads();  // read by all before the next pass clears
        if (whole) break;
    }
    return settled;
}

// One block per row.
__global__ void __launch_bounds__(kThreads)
    overlap_kernel(std::int64_t* __restrict__ overlap, const float* __restrict__ a,
                   const float* __restrict__ b, std::int64_t rows, std::int64_t cells,
                   std::int64_t k) {
    PYCC_SHARED(search, Search);
    for (const std::int64_t n : blocks_of_grid(rows)) {
        const float *row_a = a + n * cells, *row_b = b + n * cells;
        if (k == 0 || k == cells) {
            if (threadIdx.x == 0) overlap[n] = k;
            continue;
        }
        const std::uint64_t least_a = least_rank(row_a, cells, k, search);
        const std::uint64_t least_b = least_rank(row_b, cells, k, search);
        std::uint32_t both = 0;
        for (const std::int64_t i : threads_of_block(cells)) {
            const auto index = static_cast<std::uint32_t>(i);
            both += cell_rank(row_a[i], index) >= least_a && cell_rank(row_b[i], index) >= least_b;
        }
        const std::uint32_t total = fold_block<kThreads>(both, Sum{});
        if (threadIdx.x == 0) overlap[n] = static_cast<std::int64_t>(total);
    }
}

}  // namespace

void cuda(std::int64_t* overlap /* [rows] */, const float* a /* [rows,cells] */,
          const float* b /* [rows,cells] */, std::int64_t rows, std::int64_t cells, std::int64_t k,
          cudaStream_t stream) {
    if (rows == 0) return;
    launch("topk_overlap", overlap_kernel, strided_blocks(rows, 1), kThreads, 0, stream, overlap, a,
           b, rows, cells, k);
}

}  // namespace pycc::topk_overlap
