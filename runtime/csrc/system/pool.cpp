#include "system/pool.h"

#include <pthread.h>

#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <thread>

namespace metah {
namespace {

struct Job {
    const std::function<void(size_t)>* task;
    size_t tasks;
    size_t next = 0;  // all under the pool's mutex: tasks are large
    size_t running = 0;
    std::exception_ptr error;
    Job* later = nullptr;  // the job that came after it
};

class Pool {
  public:
    void run(size_t tasks, const std::function<void(size_t)>& task) {
        Job job;
        job.task = &task;
        job.tasks = tasks;
        std::unique_lock lock(mutex_);
        while (workers_ + 1 < tasks && workers_ < kMaxWorkers && start_worker()) ++workers_;
        *last_ = &job;
        last_ = &job.later;
        wake_.notify_all();
        while (job.next < job.tasks) step(job, lock);
        done_.wait(lock, [&] { return job.running == 0; });
        if (job.error) std::rethrow_exception(job.error);
    }

  private:
    static constexpr size_t kMaxWorkers = 255;

    // False: a limit on threads or memory is reached.
    bool start_worker() {
        try {
            std::thread([this] { work(); }).detach();
            return true;
        } catch (const std::exception&) {
            return false;
        }
    }

    void remove(Job& job) {
        Job** at = &first_;
        while (*at != &job) at = &(*at)->later;
        *at = job.later;
        if (last_ == &job.later) last_ = at;
    }

    // Runs the next task of the job; called and left with the lock held.
    void step(Job& job, std::unique_lock<std::mutex>& lock) {
        const size_t index = job.next++;
        if (job.next == job.tasks) remove(job);
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
            wake_.wait(lock, [&] { return first_ != nullptr; });
            step(*first_, lock);
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_, done_;
    Job* first_ = nullptr;  // jobs with tasks that nobody took yet
    Job** last_ = &first_;  // where the next job is hung
    size_t workers_ = 0;
};

// Made when the module is loaded and never destroyed: workers may outlive the exit of the main
// thread. A forked child has no workers and perhaps a locked mutex, so it makes the pool anew.
alignas(Pool) unsigned char storage[sizeof(Pool)];
Pool* const pool = new (storage) Pool;
[[maybe_unused]] const int registered =
    pthread_atfork(nullptr, nullptr, [] { new (storage) Pool; });

}  // namespace

void parallel(size_t tasks, const std::function<void(size_t)>& task) {
    if (tasks == 1) return task(0);
    if (tasks > 1) pool->run(tasks, task);
}

}  // namespace metah
