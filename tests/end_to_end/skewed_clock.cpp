// The wall clock of a process, wrong by $CLOCK_SKEW_S seconds: preloaded into services of a test's deployment.
// Monotonic clocks and the times of files stay right, as they do on a host whose clock is wrong.

#include <dlfcn.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/time.h>
#include <time.h>

#include <cstdlib>

namespace {

time_t skew() {
  static const time_t seconds = std::getenv("CLOCK_SKEW_S") ? std::atol(std::getenv("CLOCK_SKEW_S")) : 0;
  return seconds;
}

template <typename Function>
Function next(Function, const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

// Waits until a time of the wall clock are the kernel's, whose clock is right.
timespec of_kernel(const timespec* until) { return {until->tv_sec - skew(), until->tv_nsec}; }

}  // namespace

extern "C" {

int clock_gettime(clockid_t id, timespec* now) noexcept {
  static const auto real = next(&clock_gettime, "clock_gettime");
  const int failed = real(id, now);
  if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += skew();
  return failed;
}

int gettimeofday(timeval* now, void* zone) noexcept {
  static const auto real = next(&gettimeofday, "gettimeofday");
  const int failed = real(now, zone);
  if (!failed) now->tv_sec += skew();
  return failed;
}

time_t time(time_t* out) noexcept {
  static const auto real = next(&time, "time");
  const time_t now = real(nullptr) + skew();
  if (out) *out = now;
  return now;
}

int pthread_cond_timedwait(pthread_cond_t* condition, pthread_mutex_t* mutex, const timespec* until) {
  static const auto real = next(&pthread_cond_timedwait, "pthread_cond_timedwait");
  const timespec right = of_kernel(until);
  return real(condition, mutex, &right);
}

int sem_timedwait(sem_t* semaphore, const timespec* until) {
  static const auto real = next(&sem_timedwait, "sem_timedwait");
  const timespec right = of_kernel(until);
  return real(semaphore, &right);
}
}
