// The scheduler of emulated kernels: fibers for the threads of a block, barriers, exchanges.
#include "cuda_host.h"

#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace pycc::host {
namespace {

constexpr int kWarp = 32;
constexpr std::size_t kSharedBytes = 48 * 1024;  // what every device has
constexpr std::size_t kStackBytes = 256 * 1024, kGuardBytes = 64 * 1024;
constexpr unsigned int kMostThreads = 1024;

#if defined(__x86_64__)
// Where execution continues: the registers that a call preserves lie on its stack. A switch takes
// nanoseconds; swapcontext sets the signal mask, which is a call of the kernel each time.
using Context = void*;

__attribute__((naked, noinline)) void swap_contexts(Context* /* here */, Context /* there */) {
    asm volatile(
        "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
        "movq %rsp, (%rdi); movq %rsi, %rsp\n"
        "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n"
        "ret");
}

void start_context(Context& context, void* stack, std::size_t bytes, void (*enter)()) {
    constexpr std::ptrdiff_t kPreserved = 6;
    void** top = reinterpret_cast<void**>(static_cast<char*>(stack) + bytes);
    top[-1] = nullptr;  // no caller
    top[-2] = reinterpret_cast<void*>(enter);
    std::fill(top - 2 - kPreserved, top - 2, nullptr);
    context = top - 2 - kPreserved;
}
#else
using Context = ucontext_t;

void swap_contexts(Context* here, const Context& there) {
    swapcontext(here, &there);
}

void start_context(Context& context, void* stack, std::size_t bytes, void (*enter)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, enter, 0);
}
#endif

// A place where execution continues, and the stack there. AddressSanitizer must know of switches.
struct Side {
    Context context{};
    void* stack = nullptr;
    std::size_t bytes = 0;
    void* shadow = nullptr;
};

void arrive([[maybe_unused]] Side& here, [[maybe_unused]] Side* from) {
#if defined(__SANITIZE_ADDRESS__)
    const void* bottom = nullptr;
    std::size_t bytes = 0;
    __sanitizer_finish_switch_fiber(here.shadow, &bottom, &bytes);
    if (from != nullptr) from->stack = const_cast<void*>(bottom), from->bytes = bytes;
#endif
}

// Continues there, until something continues here; `from` becomes the stack that it comes from.
void leave(Side& here, Side& there, Side* from) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&here.shadow, there.stack, there.bytes);
#endif
    swap_contexts(&here.context, there.context);
    arrive(here, from);
}

enum class State { ready, at_barrier, in_exchange, done };

struct Fiber {
    Side side;
    void* memory = MAP_FAILED;  // the stack and its guard
    Place place;
    unsigned int number = 0;  // in its block
    State state = State::done;
    bool started = false;
    const char* file = nullptr;  // of the barrier at which it waits
    int line = 0;
    bool counts = false;
    int counted = 0;
    std::uint64_t exchanged = 0;

    Fiber() = default;
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;
    ~Fiber() {
        if (memory == MAP_FAILED) return;
#if defined(__SANITIZE_ADDRESS__)
        __asan_unpoison_memory_region(memory, kGuardBytes + kStackBytes);  // of abandoned frames
#endif
        munmap(memory, kGuardBytes + kStackBytes);
    }

    unsigned int lane() const { return number % kWarp; }
    unsigned int warp() const { return number / kWarp; }
};

// An exchange that not all lanes in its mask have reached.
struct Meeting {
    Exchange kind;
    unsigned int mask;
    unsigned int arrived = 0;
    Fiber* lanes[kWarp] = {};
    std::uint64_t values[kWarp] = {};
    int arguments[kWarp] = {};
};

struct FreeAligned {
    std::size_t alignment;
    void operator()(unsigned char* memory) const {
        ::operator delete(memory, std::align_val_t{alignment});
    }
};
using Memory = std::unique_ptr<unsigned char, FreeAligned>;

std::string too_much_shared(std::size_t bytes) {
    return "a block uses " + std::to_string(bytes) + " bytes of shared memory, at most " +
           std::to_string(kSharedBytes);
}

// Runs blocks, one at a time.
class Scheduler {
  public:
    void run(const char* kernel, dim3 grid, dim3 block, std::size_t shared,
             const std::function<void()>& thread);
    Fiber& current() { return *current_; }
    void* shared_memory(const void* site, std::size_t bytes, std::size_t alignment);
    void* dynamic() { return dynamic_.get(); }
    void wait(State state);
    std::uint64_t exchange(Exchange kind, unsigned int mask, std::uint64_t own, int argument);
    [[noreturn]] void fail(const std::string& why);

  private:
    static void enter();

    void prepare(unsigned int threads);
    void run_block(dim3 index, dim3 grid, dim3 block, std::size_t shared);
    bool resume_all(unsigned int threads);
    bool resume_warp(unsigned int first, unsigned int threads);
    void release_barrier(unsigned int threads);
    std::uint64_t result(const Meeting& meeting, unsigned int lane);
    Memory junk(std::size_t bytes, std::size_t alignment);
    const std::vector<std::int64_t>& order(std::vector<std::int64_t>& numbers, std::int64_t count);

    std::vector<std::unique_ptr<Fiber>> fibers_;
    std::vector<std::vector<Meeting>> meetings_;  // of each warp
    std::map<const void*, Memory> shared_;
    Memory dynamic_;
    std::size_t shared_bytes_ = 0;
    Side main_;
    Fiber* current_ = nullptr;
    const std::function<void()>* thread_ = nullptr;
    std::vector<std::int64_t> block_order_, warp_order_, lane_order_;
    std::string failure_;
    std::mt19937_64 random_;
};

Scheduler* scheduler = nullptr;  // of the launch that runs

void Scheduler::enter() {
    Scheduler* const own = scheduler;
    arrive(own->current_->side, &own->main_);
    for (;;) {
        try {
            (*scheduler->thread_)();
        } catch (const std::exception& error) {  // no frame above could catch it
            scheduler->fail(error.what());
        }
        scheduler->wait(State::done);
    }
}

void Scheduler::wait(State state) {
    current_->state = state;
    leave(current_->side, main_, &main_);  // launches may come from several threads
}

void Scheduler::fail(const std::string& why) {
    failure_ = why;
    for (;;) wait(State::done);  // the launch ends; this fiber is never resumed
}

void Scheduler::prepare(unsigned int threads) {
    while (fibers_.size() < threads) {
        auto fiber = std::make_unique<Fiber>();
        fiber->number = static_cast<unsigned int>(fibers_.size());
        fiber->side.bytes = kStackBytes;
        fiber->memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (fiber->memory == MAP_FAILED) throw std::bad_alloc();
        mprotect(fiber->memory, kGuardBytes, PROT_NONE);  // an overflow of the stack ends here
        fiber->side.stack = static_cast<char*>(fiber->memory) + kGuardBytes;
        fibers_.push_back(std::move(fiber));
    }
    for (unsigned int i = 0; i < threads; ++i) {
        Fiber& fiber = *fibers_[i];
        if (fiber.started) continue;
        start_context(fiber.side.context, fiber.side.stack, fiber.side.bytes, &Scheduler::enter);
        fiber.started = true;
    }
}

// Numbers from 0 to count - 1, in the order of this time: a function of the seed and what was
// drawn.
const std::vector<std::int64_t>& Scheduler::order(std::vector<std::int64_t>& numbers,
                                                  std::int64_t count) {
    numbers.resize(static_cast<std::size_t>(count));
    std::iota(numbers.begin(), numbers.end(), std::int64_t{0});
    if (emulation.seed != 0) std::shuffle(numbers.begin(), numbers.end(), random_);
    return numbers;
}

Memory Scheduler::junk(std::size_t bytes, std::size_t alignment) {
    auto* memory = static_cast<unsigned char*>(::operator new(bytes, std::align_val_t{alignment}));
    // All bits set are NaN, -1 and the largest unsigned numbers.
    std::memset(memory, emulation.seed == 0 ? 0xFF : static_cast<int>(random_() % 255 + 1), bytes);
    return Memory(memory, FreeAligned{alignment});
}

void Scheduler::run(const char* kernel, dim3 grid, dim3 block, std::size_t shared,
                    const std::function<void()>& thread) {
    const unsigned int threads = block.x * block.y * block.z;
    if (threads == 0 || threads > kMostThreads || grid.x == 0 || grid.y == 0 || grid.z == 0) {
        throw std::runtime_error(std::string(kernel) + ": invalid configuration of the launch");
    }
    if (shared > kSharedBytes) {
        throw std::runtime_error(std::string(kernel) + ": " + too_much_shared(shared));
    }
    random_.seed(emulation.seed);
    thread_ = &thread;
    failure_.clear();
    prepare(threads);
    const std::int64_t plane = std::int64_t{grid.x} * grid.y;
    for (const std::int64_t number : order(block_order_, plane * grid.z)) {
        const dim3 index(static_cast<unsigned int>(number % grid.x),
                         static_cast<unsigned int>(number / grid.x % grid.y),
                         static_cast<unsigned int>(number / plane));
        run_block(index, grid, block, shared);
        if (!failure_.empty()) {
            fibers_.clear();  // their stacks hold threads that will not go on
            throw std::runtime_error(std::string(kernel) + ": " + failure_);
        }
    }
}

void Scheduler::run_block(dim3 index, dim3 grid, dim3 block, std::size_t shared) {
    const unsigned int threads = block.x * block.y * block.z;
    shared_.clear();
    shared_bytes_ = shared;
    dynamic_ = shared > 0 ? junk(shared, 16) : Memory(nullptr, FreeAligned{16});
    meetings_.assign((threads + kWarp - 1) / kWarp, {});
    for (unsigned int i = 0; i < threads; ++i) {
        const dim3 own(i % block.x, i / block.x % block.y, i / (block.x * block.y));
        fibers_[i]->place = {own, index, block, grid};
        fibers_[i]->state = State::ready;
    }
    while (failure_.empty()) {
        if (resume_all(threads)) continue;
        const auto waits = [](const auto& fiber) { return fiber->state == State::at_barrier; };
        const auto end = fibers_.begin() + threads;
        if (std::all_of(fibers_.begin(), end,
                        [](const auto& fiber) { return fiber->state == State::done; })) {
            return;
        }
        if (!std::all_of(fibers_.begin(), end, waits)) {
            failure_ = std::any_of(fibers_.begin(), end, waits)
                           ? "threads wait at a barrier that others of the block do not reach"
                           : "lanes wait for others of a mask that do not reach the exchange";
            return;
        }
        release_barrier(threads);
    }
}

// Resumes every thread that can run, warp by warp; returns whether there was one. In random order,
// a warp may go on until all of its threads wait, far ahead of the others.
bool Scheduler::resume_all(unsigned int threads) {
    bool any = false;
    for (const std::int64_t warp : order(warp_order_, (threads + kWarp - 1) / kWarp)) {
        const bool ahead = emulation.seed != 0 && (random_() & 1U) != 0;
        while (resume_warp(static_cast<unsigned int>(warp) * kWarp, threads)) {
            any = true;
            if (!ahead || !failure_.empty()) break;
        }
        if (!failure_.empty()) break;
    }
    return any;
}

// Resumes every thread of a warp that can run, once; returns whether there was one.
bool Scheduler::resume_warp(unsigned int first, unsigned int threads) {
    bool any = false;
    for (const std::int64_t lane : order(lane_order_, kWarp)) {
        const unsigned int number = first + static_cast<unsigned int>(lane);
        if (number >= threads || fibers_[number]->state != State::ready) continue;
        any = true;
        current_ = fibers_[number].get();
        leave(main_, current_->side, nullptr);
        if (!failure_.empty()) break;
    }
    return any;
}

void Scheduler::release_barrier(unsigned int threads) {
    const Fiber& first = *fibers_[0];
    int counted = 0;
    for (unsigned int i = 0; i < threads; ++i) {
        const Fiber& fiber = *fibers_[i];
        if (fiber.line != first.line || std::strcmp(fiber.file, first.file) != 0) {
            failure_ = "threads of a block wait at different barriers: " + std::string(first.file) +
                       ":" + std::to_string(first.line) + " and " + fiber.file + ":" +
                       std::to_string(fiber.line);
            return;
        }
        counted += fiber.counts ? 1 : 0;
    }
    for (unsigned int i = 0; i < threads; ++i) {
        fibers_[i]->counted = counted;
        fibers_[i]->state = State::ready;
    }
}

void* Scheduler::shared_memory(const void* site, std::size_t bytes, std::size_t alignment) {
    const auto known = shared_.find(site);
    if (known != shared_.end()) return known->second.get();
    shared_bytes_ += bytes;
    if (shared_bytes_ > kSharedBytes) {
        fail(too_much_shared(shared_bytes_));
    }
    return shared_.emplace(site, junk(bytes, alignment)).first->second.get();
}

std::uint64_t Scheduler::exchange(Exchange kind, unsigned int mask, std::uint64_t own,
                                  int argument) {
    Fiber& fiber = *current_;
    const unsigned int bit = 1U << fiber.lane();
    if ((mask & bit) == 0) fail("a lane takes part in an exchange whose mask does not name it");
    std::vector<Meeting>& open = meetings_[fiber.warp()];
    auto meeting = std::find_if(open.begin(), open.end(), [&](const Meeting& candidate) {
        return candidate.kind == kind && candidate.mask == mask && (candidate.arrived & bit) == 0;
    });
    if (meeting == open.end()) meeting = open.insert(open.end(), Meeting{kind, mask});
    meeting->arrived |= bit;
    meeting->lanes[fiber.lane()] = &fiber;
    meeting->values[fiber.lane()] = own;
    meeting->arguments[fiber.lane()] = argument;
    if (meeting->arrived != mask) {
        wait(State::in_exchange);
        return fiber.exchanged;
    }
    for (unsigned int lane = 0; lane < kWarp; ++lane) {
        if (meeting->lanes[lane] == nullptr) continue;
        meeting->lanes[lane]->exchanged = result(*meeting, lane);
        meeting->lanes[lane]->state = State::ready;
    }
    open.erase(meeting);
    return fiber.exchanged;
}

std::uint64_t Scheduler::result(const Meeting& meeting, unsigned int lane) {
    std::uint64_t bits = 0;
    if (meeting.kind == Exchange::ballot || meeting.kind == Exchange::match_any) {
        for (unsigned int other = 0; other < kWarp; ++other) {
            if ((meeting.mask >> other & 1U) == 0) continue;
            const bool set = meeting.kind == Exchange::ballot
                                 ? meeting.values[other] != 0
                                 : meeting.values[other] == meeting.values[lane];
            if (set) bits |= std::uint64_t{1} << other;
        }
        return bits;
    }
    const int argument = meeting.arguments[lane];
    int source = argument;
    if (meeting.kind == Exchange::shuffle_down) source = static_cast<int>(lane) + argument;
    if (meeting.kind == Exchange::shuffle_up) source = static_cast<int>(lane) - argument;
    if (source < 0 || source >= kWarp) {
        source = meeting.kind == Exchange::shuffle ? source & (kWarp - 1) : static_cast<int>(lane);
    }
    if ((meeting.mask >> source & 1U) == 0) return random_() | 1U;  // undefined on a device
    return meeting.values[source];
}

}  // namespace

const Place& place() {
    return scheduler->current().place;
}

void run(const char* kernel, dim3 grid, dim3 block, std::size_t shared,
         const std::function<void()>& thread) {
    static std::mutex one;
    const std::lock_guard<std::mutex> lock(one);
    static Scheduler shared_scheduler;
    scheduler = &shared_scheduler;
    shared_scheduler.run(kernel, grid, block, shared, thread);
}

void* shared_memory(const void* site, std::size_t bytes, std::size_t alignment) {
    return scheduler->shared_memory(site, bytes, alignment);
}

void* dynamic_shared_memory() {
    return scheduler->dynamic();
}

int barrier(const char* file, int line, bool counts) {
    Fiber& fiber = scheduler->current();
    fiber.file = file, fiber.line = line, fiber.counts = counts;
    scheduler->wait(State::at_barrier);
    return fiber.counted;
}

std::uint64_t exchange(Exchange kind, unsigned int mask, std::uint64_t own, int argument) {
    return scheduler->exchange(kind, mask, own, argument);
}

}  // namespace pycc::host
