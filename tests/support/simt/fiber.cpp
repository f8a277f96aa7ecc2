// Switching of stacks by hand on x86-64, where ucontext would make a system call for every shuffle, and by ucontext elsewhere.
// AddressSanitizer is told of every switch; ThreadSanitizer is not: to it the fibers of a thread are that thread, which they are,
// and its clocks of a fiber would make a switch four times slower. Call stacks in its reports mix those of the fibers.
#include "tests/support/simt/fiber.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
extern "C" void simt_switch_stack(void** from, void* to);
asm(R"(
  .text
  .type simt_switch_stack, @function
simt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size simt_switch_stack, . - simt_switch_stack
)");
#endif

namespace simt {
namespace {

// Kernels hold their arrays here; untouched pages cost nothing.
constexpr size_t kStackBytes = size_t{256} << 10;
constexpr size_t kGuardBytes = 4096;

}  // namespace

Fiber::Fiber(void (*entry)()) : stack_bytes_(kStackBytes) {
  void* memory =
      mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) {
    std::fprintf(stderr, "simt: no memory for the stack of a fiber\n");
    std::abort();
  }
  stack_ = static_cast<char*>(memory) + kGuardBytes;
#if defined(__x86_64__)
  // Six registers, the entry, and a return address of zero, which leaves the stack as a call would.
  auto* top = reinterpret_cast<uint64_t*>(static_cast<char*>(stack_) + kStackBytes);
  *--top = 0;
  *--top = reinterpret_cast<uint64_t>(entry);
  for (int i = 0; i < 6; ++i) *--top = 0;
  position_ = top;
#else
  auto* context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = stack_;
  context->uc_stack.ss_size = kStackBytes;
  makecontext(context, entry, 0);
  position_ = context;
#endif
}

Fiber::~Fiber() {
#if !defined(__x86_64__)
  delete static_cast<ucontext_t*>(position_);
#endif
  if (stack_ == nullptr) return;
#if defined(__SANITIZE_ADDRESS__)
  // Frames that never returned have left marks, which the next stack of a thread at this address would find.
  __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
  munmap(static_cast<char*>(stack_) - kGuardBytes, kStackBytes + kGuardBytes);
}

void Fiber::switch_to(Fiber& next) {
#if defined(__SANITIZE_ADDRESS__)
  if (stack_ == nullptr && stack_bytes_ == 0) {
    // The thread's own stack, which the sanitizer wants to hear of when it is switched back to.
    pthread_attr_t attributes;
    pthread_getattr_np(pthread_self(), &attributes);
    void* bottom = nullptr;
    pthread_attr_getstack(&attributes, &bottom, &stack_bytes_);
    pthread_attr_destroy(&attributes);
    own_bottom_ = bottom;
  }
  __sanitizer_start_switch_fiber(&sanitizer_, next.stack_ ? next.stack_ : next.own_bottom_, next.stack_bytes_);
#endif
#if defined(__x86_64__)
  simt_switch_stack(&position_, next.position_);
#else
  if (position_ == nullptr) position_ = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(position_), static_cast<ucontext_t*>(next.position_));
#endif
  arrived(*this);
}

void Fiber::arrived([[maybe_unused]] Fiber& self) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(self.sanitizer_, nullptr, nullptr);
  self.sanitizer_ = nullptr;
#endif
}

}  // namespace simt
