// Parallel loops over std::thread, without a pool or a second OpenMP runtime beside torch's.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace pycc {

// Calls body(begin, end) on disjoint ranges that cover [0, count), each at least `grain` long, on
// at most `threads` threads. A thread costs about 40 us: choose `grain` for 0.2 ms of work or more.
// The result for an index must not depend on the range that contains it. An exception of body is
// rethrown after all threads have finished.
template <class Body>
void parallel_for(std::int64_t count, std::int64_t grain, int threads, const Body& body) {
    const std::int64_t ranges =
        std::clamp<std::int64_t>(count / std::max<std::int64_t>(grain, 1), 1, std::max(threads, 1));
    const auto bound = [&](std::int64_t range) { return count * range / ranges; };
    std::vector<std::exception_ptr> thrown(static_cast<std::size_t>(ranges));
    const auto guarded = [&](std::int64_t begin, std::int64_t end, std::int64_t range) noexcept {
        try {
            body(begin, end);
        } catch (...) {
            thrown[static_cast<std::size_t>(range)] = std::current_exception();
        }
    };
    std::vector<std::thread> workers;
    workers.reserve(static_cast<std::size_t>(ranges - 1));
    std::int64_t started = 0;
    try {
        for (; started < ranges - 1; ++started) {
            workers.emplace_back(guarded, bound(started), bound(started + 1), started);
        }
    } catch (const std::exception&) {  // no more threads available: the rest runs here
    }
    guarded(bound(started), count, started);
    for (auto& worker : workers) worker.join();
    for (const auto& exception : thrown) {
        if (exception) std::rethrow_exception(exception);
    }
}

}  // namespace pycc
