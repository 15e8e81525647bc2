#include "../core/cuda.cuh"
#include "pair_extremes.h"

namespace pycc::pair_extremes {
namespace {

constexpr int kThreads = 256;

struct Extremes {
    std::int64_t most, least;
};

struct Wider {
    __device__ Extremes operator()(const Extremes& a, const Extremes& b) const {
        return {a.most > b.most ? a.most : b.most, a.least < b.least ? a.least : b.least};
    }
};

// One block per window; its threads take the other windows in turn.
__global__ void __launch_bounds__(kThreads)
    extremes_kernel(std::int64_t* __restrict__ most, std::int64_t* __restrict__ least,
                    const std::int64_t* __restrict__ table,
                    const std::int64_t* __restrict__ guesses,
                    const std::int64_t* __restrict__ row_starts,
                    const std::int64_t* __restrict__ column_starts,
                    const std::int64_t* __restrict__ row_span_of,
                    const std::int64_t* __restrict__ column_span_of, Sizes sizes) {
    const std::int64_t windows = sizes.rows * sizes.columns;
    const std::int64_t high = sizes.window_height, wide = sizes.window_width;
    const std::int64_t total = table[sizes.height * (sizes.width + 1) + sizes.width];
    const auto sum_of = [&](std::int64_t top, std::int64_t left) {
        return window_sum(table, top, left, top + high, left + wide, sizes.width);
    };
    const auto guess_of = [&](std::int64_t row, std::int64_t row_span, std::int64_t column,
                              std::int64_t column_span) {
        const std::int64_t line = (row * sizes.row_spans + row_span) * sizes.columns + column;
        return guesses[line * sizes.column_spans + column_span];
    };
    for (const std::int64_t window : blocks_of_grid(windows)) {
        const std::int64_t i = window / sizes.columns, j = window % sizes.columns;
        const std::int64_t top = row_starts[i], left = column_starts[j];
        const std::int64_t base = total - sum_of(top, left);
        Extremes own{-kFar, kFar};
        for (const std::int64_t other : threads_of_block(windows)) {
            const std::int64_t k = other / sizes.columns, l = other % sizes.columns;
            const std::int64_t row_span = row_span_of[i * sizes.rows + k];
            const std::int64_t column_span = column_span_of[j * sizes.columns + l];
            if (row_span < 0 || column_span < 0) continue;
            std::int64_t theirs = guess_of(k, row_span_of[k * sizes.rows + i], l,
                                           column_span_of[l * sizes.columns + j]);
            std::int64_t shared = 0;
            const Shared rows = shared_cells(top, row_starts[k], high);
            const Shared columns = shared_cells(left, column_starts[l], wide);
            if (rows.end > rows.first && columns.end > columns.first) {
                shared = window_sum(table, rows.first, columns.first, rows.end, columns.end,
                                    sizes.width);
                theirs = own_part(theirs, (rows.end - rows.first) * (columns.end - columns.first),
                                  high * wide);
            }
            const std::int64_t entry = base + guess_of(i, row_span, j, column_span) + theirs -
                                       sum_of(row_starts[k], column_starts[l]) + shared;
            own = Wider{}(own, {entry, entry});
        }
        const Extremes all = fold_block<kThreads>(own, Wider{});
        if (threadIdx.x == 0) {
            most[window] = all.most;
            least[window] = all.least;
        }
    }
}

}  // namespace

void cuda(std::int64_t* most /* [rows,columns] */, std::int64_t* least /* [rows,columns] */,
          const std::int64_t* table /* [height+1,width+1] */,
          const std::int64_t* guesses /* [rows,row_spans,columns,column_spans] */,
          const std::int64_t* row_starts /* [rows] */,
          const std::int64_t* column_starts /* [columns] */,
          const std::int64_t* row_span_of /* [rows,rows] */,
          const std::int64_t* column_span_of /* [columns,columns] */, const Sizes& sizes,
          cudaStream_t stream) {
    if (sizes.rows * sizes.columns == 0) return;
    launch("pair_extremes", extremes_kernel, strided_blocks(sizes.rows * sizes.columns, 1),
           kThreads, 0, stream, most, least, table, guesses, row_starts, column_starts, row_span_of,
           column_span_of, sizes);
}

}  // namespace pycc::pair_extremes
