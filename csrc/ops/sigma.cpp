// Nearest neighbours by a balanced k-d tree with tight boxes, queried leaf by leaf.
#include "sigma.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../core/parallel.h"

namespace pycc {
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

constexpr std::int64_t kLeafSize = 8;

class Tree {
  public:
    Tree(const double* points, std::int64_t count) {
        points_.reserve(static_cast<std::size_t>(count));
        for (std::int64_t i = 0; i < count; ++i) {
            points_.push_back({points[2 * i], points[2 * i + 1], i});
        }
        nodes_.reserve(static_cast<std::size_t>(4 * count / kLeafSize + 1));
        build(0, count);
    }

    const std::vector<Node>& nodes() const { return nodes_; }
    const Point& point(std::int64_t i) const { return points_[static_cast<std::size_t>(i)]; }

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
        if (end - begin > kLeafSize) {
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

    std::vector<Point> points_;
    std::vector<Node> nodes_;
};

double squared_to_box(const Node& node, double x, double y) {
    const double dx = std::max({node.low_x - x, 0.0, x - node.high_x});
    const double dy = std::max({node.low_y - y, 0.0, y - node.high_y});
    return dx * dx + dy * dy;
}

// Distances to the points of a leaf, but for the query itself.
void scan(const Tree& tree, const Node& leaf, std::int64_t query, Nearest& nearest) {
    const Point& q = tree.point(query);
    for (std::int64_t i = leaf.begin; i < leaf.end; ++i) {
        if (i == query) continue;
        const double dx = tree.point(i).x - q.x, dy = tree.point(i).y - q.y;
        nearest.offer(dx * dx + dy * dy);
    }
}

// All points of the tree but those of `home`, which have been seen; `home` holds the query.
void search(const Tree& tree, std::int64_t home, std::int64_t query, Nearest& nearest) {
    const auto& nodes = tree.nodes();
    const Point& q = tree.point(query);
    std::int64_t stack[128];  // depth <= 2 log2(count)
    int top = 0;
    stack[top++] = 0;
    while (top > 0) {
        const std::int64_t id = stack[--top];
        const Node& node = nodes[static_cast<std::size_t>(id)];
        if (id == home || squared_to_box(node, q.x, q.y) >= nearest.worst()) continue;
        if (node.right == 0) {
            scan(tree, node, query, nearest);
            continue;
        }
        const bool near_left = query < nodes[static_cast<std::size_t>(node.right)].begin;
        stack[top++] = near_left ? node.right : id + 1;
        stack[top++] = near_left ? id + 1 : node.right;
    }
}

}  // namespace

void adaptive_sigma_cpu(float* sigma, const double* points, std::int64_t count, int neighbours,
                        double beta, int threads) {
    const Tree tree(points, count);
    std::vector<std::int64_t> leaves;
    for (std::size_t id = 0; id < tree.nodes().size(); ++id) {
        if (tree.nodes()[id].right == 0) leaves.push_back(static_cast<std::int64_t>(id));
    }
    const int wanted = static_cast<int>(std::min<std::int64_t>(neighbours, count - 1));
    constexpr std::int64_t kLeavesPerThread = 64;  // about 0.2 ms
    parallel_for(static_cast<std::int64_t>(leaves.size()), kLeavesPerThread, threads,
                 [&](std::int64_t begin, std::int64_t end) {
                     Nearest nearest(wanted);
                     for (std::int64_t n = begin; n < end; ++n) {
                         const std::int64_t home = leaves[static_cast<std::size_t>(n)];
                         const Node& leaf = tree.nodes()[static_cast<std::size_t>(home)];
                         for (std::int64_t i = leaf.begin; i < leaf.end; ++i) {
                             nearest.reset();
                             scan(tree, leaf, i, nearest);
                             search(tree, home, i, nearest);
                             sigma[tree.point(i).index] =
                                 static_cast<float>(beta * nearest.mean_distance());
                         }
                     }
                 });
}

}  // namespace pycc
