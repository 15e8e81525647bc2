// Nearest neighbours by a balanced k-d tree with tight bounding boxes, queried leaf by leaf.
#include "adaptive_sigma.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../core/parallel.h"

namespace pycc::adaptive_sigma {
namespace {

struct Point {
    double x, y;
    std::int64_t index;  // in the caller's order
};

struct Node {
    double low_x, high_x, low_y, high_y;  // tight box
    std::int64_t begin, end;              // its points
    std::int64_t right;                   // right child (the left one follows); 0 for a leaf
};

// Leaves of 5 to 8 points, or more if more neighbours are needed than such a leaf may contain.
std::int64_t leaf_size(int wanted) {
    return std::max<std::int64_t>(8, 2 * wanted + 2);
}

class Tree {
  public:
    Tree(const double* points /* [count,2] (x, y) */, std::int64_t count, std::int64_t leaf)
        : leaf_(leaf) {
        points_.reserve(static_cast<std::size_t>(count));
        for (std::int64_t i = 0; i < count; ++i) {
            points_.push_back({points[2 * i], points[2 * i + 1], i});
        }
        nodes_.reserve(static_cast<std::size_t>(4 * count / leaf + 1));
        build(0, count);
        for (const Point& p : points_) x_.push_back(p.x), y_.push_back(p.y);
    }

    const std::vector<Node>& nodes() const { return nodes_; }
    const Point& point(std::int64_t i) const { return points_[static_cast<std::size_t>(i)]; }
    const double* x() const { return x_.data(); }
    const double* y() const { return y_.data(); }

  private:
    std::int64_t build(std::int64_t begin, std::int64_t end) {
        constexpr double inf = std::numeric_limits<double>::infinity();
        Node node{inf, -inf, inf, -inf, begin, end, 0};
        for (std::int64_t i = begin; i < end; ++i) {
            const Point& p = point(i);
            node.low_x = std::min(node.low_x, p.x), node.high_x = std::max(node.high_x, p.x);
            node.low_y = std::min(node.low_y, p.y), node.high_y = std::max(node.high_y, p.y);
        }
        const auto id = static_cast<std::int64_t>(nodes_.size());
        nodes_.push_back(node);
        if (end - begin > leaf_) {
            const std::int64_t middle = (begin + end) / 2;
            const bool by_x = node.high_x - node.low_x >= node.high_y - node.low_y;
            std::nth_element(
                points_.begin() + begin, points_.begin() + middle, points_.begin() + end,
                [by_x](const Point& a, const Point& b) { return by_x ? a.x < b.x : a.y < b.y; });
            build(begin, middle);
            const std::int64_t right = build(middle, end);  // may move nodes_
            nodes_[static_cast<std::size_t>(id)].right = right;
        }
        return id;
    }

    std::int64_t leaf_;
    std::vector<Point> points_;
    std::vector<Node> nodes_;
    std::vector<double> x_, y_;  // coordinates of the points, as separate arrays for SIMD
};

double squared_to_box(const Node& node, double x, double y) {
    const double dx = std::max({node.low_x - x, 0.0, x - node.high_x});
    const double dy = std::max({node.low_y - y, 0.0, y - node.high_y});
    return dx * dx + dy * dy;
}

// Offers the distances from point `query` to all other points of a leaf.
void scan(const Tree& tree, const Node& leaf, std::int64_t query, Nearest& nearest) {
    constexpr std::int64_t kAtOnce = 8;
    const double qx = tree.x()[query], qy = tree.y()[query];
    double squared[kAtOnce];
    for (std::int64_t first = leaf.begin; first < leaf.end; first += kAtOnce) {
        const std::int64_t count = std::min(kAtOnce, leaf.end - first);
        for (std::int64_t i = 0; i < count; ++i) {
            const double dx = tree.x()[first + i] - qx, dy = tree.y()[first + i] - qy;
            squared[i] = dx * dx + dy * dy;
        }
        for (std::int64_t i = 0; i < count; ++i) {
            if (first + i != query) nearest.offer(squared[i]);
        }
    }
}

double squared_between(const Node& a, const Node& b) {
    const double dx = std::max({a.low_x - b.high_x, 0.0, b.low_x - a.high_x});
    const double dy = std::max({a.low_y - b.high_y, 0.0, b.low_y - a.high_y});
    return dx * dx + dy * dy;
}

// Visits the leaves, except `home`, that may contain a neighbour of a point of `home`: those nearer
// to its box than `reach` (squared), nearest subtrees first.
void leaves_within(const Tree& tree, std::int64_t home, double reach,
                   std::vector<std::int64_t>& found) {
    const auto& nodes = tree.nodes();
    const Node& own = nodes[static_cast<std::size_t>(home)];
    std::int64_t stack[128];  // depth <= 2 log2(count)
    int top = 0;
    stack[top++] = 0;
    found.clear();
    while (top > 0) {
        const std::int64_t id = stack[--top];
        const Node& node = nodes[static_cast<std::size_t>(id)];
        if (id == home || squared_between(node, own) >= reach) continue;
        if (node.right == 0) {
            found.push_back(id);
            continue;
        }
        const bool near_left = own.begin < nodes[static_cast<std::size_t>(node.right)].begin;
        stack[top++] = near_left ? node.right : id + 1;
        stack[top++] = near_left ? id + 1 : node.right;
    }
}

// Computes sigma of the points of one leaf. The distances within the leaf bound the search.
void leaf_sigma(float* sigma /* [count] */, const Tree& tree, std::int64_t home, double beta,
                std::vector<Nearest>& nearest, std::vector<std::int64_t>& others) {
    const auto& nodes = tree.nodes();
    const Node& leaf = nodes[static_cast<std::size_t>(home)];
    double reach = 0.0;
    for (std::int64_t i = leaf.begin; i < leaf.end; ++i) {
        Nearest& own = nearest[static_cast<std::size_t>(i - leaf.begin)];
        own.reset();
        scan(tree, leaf, i, own);
        reach = std::max(reach, own.worst());
    }
    leaves_within(tree, home, reach, others);
    for (std::int64_t i = leaf.begin; i < leaf.end; ++i) {
        Nearest& own = nearest[static_cast<std::size_t>(i - leaf.begin)];
        const Point& q = tree.point(i);
        for (const std::int64_t id : others) {
            const Node& other = nodes[static_cast<std::size_t>(id)];
            if (squared_to_box(other, q.x, q.y) < own.worst()) scan(tree, other, i, own);
        }
        sigma[q.index] = static_cast<float>(beta * own.mean_distance());
    }
}

}  // namespace

void cpu(float* sigma /* [count] */, const double* points /* [count,2] (x, y) */,
         std::int64_t count, int neighbours, double beta, int threads) {
    const int wanted = static_cast<int>(std::min<std::int64_t>(neighbours, count - 1));
    const Tree tree(points, count, leaf_size(wanted));
    std::vector<std::int64_t> leaves;
    for (std::size_t id = 0; id < tree.nodes().size(); ++id) {
        if (tree.nodes()[id].right == 0) leaves.push_back(static_cast<std::int64_t>(id));
    }
    constexpr std::int64_t kLeavesPerThread = 64;  // about 0.2 ms
    parallel_for(static_cast<std::int64_t>(leaves.size()), kLeavesPerThread, threads,
                 [&](std::int64_t begin, std::int64_t end) {
                     std::vector<Nearest> nearest(static_cast<std::size_t>(leaf_size(wanted)),
                                                  Nearest(wanted));
                     std::vector<std::int64_t> others;
                     for (std::int64_t n = begin; n < end; ++n) {
                         leaf_sigma(sigma, tree, leaves[static_cast<std::size_t>(n)], beta, nearest,
                                    others);
                     }
                 });
}

}  // namespace pycc::adaptive_sigma
