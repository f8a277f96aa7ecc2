// Stacks that a thread of the host switches between. Who runs when is left to simt.cpp.
#pragma once

#include <cstddef>

namespace simt {

// One stack and where it stopped. The default object is the stack of the thread itself.
class Fiber {
 public:
  Fiber() = default;
  // Starts in entry(), which never returns, when it is first switched to.
  explicit Fiber(void (*entry)());
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  // From this fiber, which runs, to `next`; returns when something switches back.
  void switch_to(Fiber& next);

  // First call in entry(): completes the switch that led here.
  static void arrived(Fiber& self);

 private:
  void* stack_ = nullptr;
  size_t stack_bytes_ = 0;
  void* position_ = nullptr;    // stack pointer, or a ucontext_t
  void* own_bottom_ = nullptr;  // of the stack of the thread itself
  void* sanitizer_ = nullptr;
};

}  // namespace simt
