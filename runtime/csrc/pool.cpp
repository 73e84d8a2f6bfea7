#include "pool.h"

#include <pthread.h>

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

namespace metah {
namespace {

struct Job {
    const std::function<void(size_t)>* task;
    size_t tasks;
    size_t next = 0;  // all under the pool's mutex: tasks are large
    size_t running = 0;
    std::exception_ptr error;
};

class Pool {
  public:
    void run(size_t tasks, const std::function<void(size_t)>& task) {
        Job job;
        job.task = &task;
        job.tasks = tasks;
        std::unique_lock lock(mutex_);
        while (workers_ + 1 < tasks && workers_ < kMaxWorkers) {
            std::thread([this] { work(); }).detach();
            ++workers_;
        }
        jobs_.push_back(&job);
        wake_.notify_all();
        while (job.next < job.tasks) step(job, lock);
        done_.wait(lock, [&] { return job.running == 0; });
        if (job.error) std::rethrow_exception(job.error);
    }

  private:
    static constexpr size_t kMaxWorkers = 255;

    // Runs the next task of the job; called and left with the lock held.
    void step(Job& job, std::unique_lock<std::mutex>& lock) {
        const size_t index = job.next++;
        if (job.next == job.tasks) std::erase(jobs_, &job);
        ++job.running;
        lock.unlock();
        std::exception_ptr error;
        try {
            (*job.task)(index);
        } catch (...) {
            error = std::current_exception();
        }
        lock.lock();
        if (error && !job.error) job.error = error;
        if (--job.running == 0 && job.next == job.tasks) done_.notify_all();
    }

    void work() {
        std::unique_lock lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return !jobs_.empty(); });
            step(*jobs_.front(), lock);
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_, done_;
    std::deque<Job*> jobs_;
    size_t workers_ = 0;
};

// Never destroyed: workers may outlive the exit of the main thread. A forked child has no workers
// and perhaps a locked mutex, so it starts anew.
Pool* pool = nullptr;
std::once_flag once;

Pool& the_pool() {
    std::call_once(once, [] {
        pool = new Pool;
        pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
    });
    return *pool;
}

}  // namespace

void parallel(size_t tasks, const std::function<void(size_t)>& task) {
    if (tasks == 1) return task(0);
    if (tasks > 1) the_pool().run(tasks, task);
}

}  // namespace metah
