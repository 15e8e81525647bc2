// Ranges over std::thread: no pool, no second OpenMP runtime beside torch's.
#pragma once

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace pycc {

// Calls body(begin, end) on disjoint ranges that cover [0, count), each at least `grain` long, on
// at most `threads` threads. A thread costs about 40 us: choose `grain` for 0.2 ms of work or more.
// What body computes for an index must not depend on the range it came in.
template <class Body>
void parallel_for(std::int64_t count, std::int64_t grain, int threads, const Body& body) noexcept {
    const std::int64_t ranges =
        std::clamp<std::int64_t>(count / std::max<std::int64_t>(grain, 1), 1, std::max(threads, 1));
    const auto bound = [&](std::int64_t range) { return count * range / ranges; };
    std::vector<std::thread> workers;
    std::int64_t started = 0;
    try {
        workers.reserve(static_cast<std::size_t>(ranges - 1));
        for (; started < ranges - 1; ++started) {
            workers.emplace_back(
                [&body, begin = bound(started), end = bound(started + 1)] { body(begin, end); });
        }
    } catch (const std::system_error&) {  // no thread to be had: the rest runs here
    }
    body(bound(started), count);
    for (auto& worker : workers) worker.join();
}

}  // namespace pycc
