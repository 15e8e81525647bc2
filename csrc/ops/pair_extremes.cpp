#include "pair_extremes.h"

#include <algorithm>
#include <vector>

#include "../core/parallel.h"
#include "../core/simd.h"

namespace pycc::pair_extremes {
namespace {

std::size_t index(std::int64_t i) {
    return static_cast<std::size_t>(i);
}

// The map and its windows, and what all threads read.
struct Problem {
    const std::int64_t *table, *guesses, *row_starts, *column_starts, *row_span_of, *column_span_of;
    const Sizes& sizes;
    std::vector<std::int64_t> sums;    // [rows,columns]
    std::vector<std::int64_t> turned;  // [columns,columns]: column_span_of, transposed

    const std::int64_t* guesses_of(std::int64_t row, std::int64_t span) const {
        return guesses + (row * sizes.row_spans + span) * sizes.columns * sizes.column_spans;
    }
};

// A row of windows beside another one, and the sums of the cells that both share.
struct Beside {
    std::int64_t row, cells;            // rows of cells that both share
    const std::int64_t *mine, *theirs;  // [columns,column_spans]: guesses of both rows
    const std::int64_t* strip;          // [width+1]: sums of the shared rows, to the left
};

// Extends the extremes of the window at a column by the entries of near windows of the other row.
PYCC_SIMD void extend(std::int64_t& most, std::int64_t& least, const Problem& problem,
                      const Beside& beside, std::int64_t column, std::int64_t base) noexcept {
    const Sizes& sizes = problem.sizes;
    const std::int64_t* spans = problem.column_span_of + column * sizes.columns;
    const std::int64_t* turned = problem.turned.data() + column * sizes.columns;
    const std::int64_t* sums = problem.sums.data() + beside.row * sizes.columns;
    const std::int64_t* mine = beside.mine + column * sizes.column_spans;
    const std::int64_t area = sizes.window_height * sizes.window_width;
    const std::int64_t start = problem.column_starts[column];
    std::int64_t high = most, low = least;
    for (std::int64_t other = 0; other < sizes.columns; ++other) {
        if (spans[other] < 0) continue;
        std::int64_t theirs = beside.theirs[other * sizes.column_spans + turned[other]];
        std::int64_t shared = 0;
        const Shared cells = shared_cells(start, problem.column_starts[other], sizes.window_width);
        if (beside.cells > 0 && cells.end > cells.first) {
            shared = beside.strip[cells.end] - beside.strip[cells.first];
            theirs = own_part(theirs, beside.cells * (cells.end - cells.first), area);
        }
        const std::int64_t entry = base + mine[spans[other]] + theirs - sums[other] + shared;
        high = std::max(high, entry);
        low = std::min(low, entry);
    }
    most = high;
    least = low;
}

void row_extremes(std::int64_t* most /* [columns] */, std::int64_t* least /* [columns] */,
                  std::int64_t* strip /* [width+1] */, const Problem& problem, std::int64_t row) {
    const Sizes& sizes = problem.sizes;
    const std::int64_t pitch = sizes.width + 1;
    const std::int64_t total = problem.table[sizes.height * pitch + sizes.width];
    std::fill(most, most + sizes.columns, -kFar);
    std::fill(least, least + sizes.columns, kFar);
    for (std::int64_t other = 0; other < sizes.rows; ++other) {
        const std::int64_t span = problem.row_span_of[row * sizes.rows + other];
        if (span < 0) continue;
        const std::int64_t back = problem.row_span_of[other * sizes.rows + row];
        const Shared cells =
            shared_cells(problem.row_starts[row], problem.row_starts[other], sizes.window_height);
        const Beside beside{other, std::max<std::int64_t>(cells.end - cells.first, 0),
                            problem.guesses_of(row, span), problem.guesses_of(other, back), strip};
        if (beside.cells > 0) {
            const std::int64_t* below = problem.table + cells.end * pitch;
            const std::int64_t* above = problem.table + cells.first * pitch;
            for (std::int64_t x = 0; x < pitch; ++x) strip[x] = below[x] - above[x];
        }
        for (std::int64_t column = 0; column < sizes.columns; ++column) {
            const std::int64_t sum = problem.sums[index(row * sizes.columns + column)];
            extend(most[column], least[column], problem, beside, column, total - sum);
        }
    }
}

}  // namespace

void cpu(std::int64_t* most /* [rows,columns] */, std::int64_t* least /* [rows,columns] */,
         const std::int64_t* table /* [height+1,width+1] */,
         const std::int64_t* guesses /* [rows,row_spans,columns,column_spans] */,
         const std::int64_t* row_starts /* [rows] */,
         const std::int64_t* column_starts /* [columns] */,
         const std::int64_t* row_span_of /* [rows,rows] */,
         const std::int64_t* column_span_of /* [columns,columns] */, const Sizes& sizes,
         int threads) {
    Problem problem{table, guesses, row_starts, column_starts, row_span_of, column_span_of,
                    sizes, {},      {}};
    problem.sums.reserve(index(sizes.rows * sizes.columns));
    for (std::int64_t i = 0; i < sizes.rows; ++i) {
        for (std::int64_t j = 0; j < sizes.columns; ++j) {
            problem.sums.push_back(window_sum(table, row_starts[i], column_starts[j],
                                              row_starts[i] + sizes.window_height,
                                              column_starts[j] + sizes.window_width, sizes.width));
        }
    }
    problem.turned.reserve(index(sizes.columns * sizes.columns));
    for (std::int64_t j = 0; j < sizes.columns; ++j) {
        for (std::int64_t l = 0; l < sizes.columns; ++l) {
            problem.turned.push_back(column_span_of[l * sizes.columns + j]);
        }
    }
    const std::int64_t pairs =
        std::max<std::int64_t>(sizes.rows * sizes.columns * sizes.columns, 1);
    const std::int64_t grain = std::max<std::int64_t>((1 << 16) / pairs, 1);  // about 0.2 ms
    parallel_for(sizes.rows, grain, threads, [&](std::int64_t begin, std::int64_t end) {
        std::vector<std::int64_t> strip(index(sizes.width + 1));
        for (std::int64_t row = begin; row < end; ++row) {
            row_extremes(most + row * sizes.columns, least + row * sizes.columns, strip.data(),
                         problem, row);
        }
    });
}

}  // namespace pycc::pair_extremes
