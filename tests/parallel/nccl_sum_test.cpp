// Sums by NCCL, against an emulated library whose communicators are held by graphs that recorded them: values, the order in which a
// run ends, and ranks that fail or never come.
#include <gtest/gtest.h>
#include <nccl.h>

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "comm/communicator.h"
#include "tests/support/simt/emulated_backend.h"

namespace pq {
namespace {

class NcclSumTest : public ::testing::Test {
 protected:
  NcclSumTest() { simt::set_nccl({.missing = false}); }
  ~NcclSumTest() override { simt::set_nccl({}); }
};

RankExchange exchange_of(Communicator& comm) {
  return {.rank = comm.rank(),
          .ranks = comm.size(),
          .one_node = false,
          .all_gather = [&comm](const void* data, int64_t bytes, void* out) { comm.all_gather(data, bytes, out); }};
}

// What a rank of a run has, made and destroyed in the order of app/model_loading.h's Model.
struct Rank {
  Rank(Communicator& comm, double limit)
      : backend(make_emulated_cuda_backend(comm.rank() % 2)),
        sum(make_emulated_sum(*backend, "nccl", exchange_of(comm), limit)),
        data(backend->allocate(4 * 512)) {}

  // A step of one token that adds over ranks: recorded the second time, a graph from then on.
  void step() {
    const int32_t id = 1;
    const Span span{.row = 0, .tokens = 1, .position = 0, .slot = 0};
    backend->run_step({.ids = &id, .tokens = 1, .spans = {&span, 1}, .key = {.owner = 1, .tokens = 1}},
                      [&] { sum->all_reduce_sum(data.as<float>(), 512); });
  }

  std::unique_ptr<Backend> backend;
  std::unique_ptr<DeviceSum> sum;
  Buffer data;
};

std::string failure_of(ErrorKind kind, const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was wrong";
  return {};
}

TEST_F(NcclSumTest, GivesTheBitsOfTheHostsTree) {
  for (const int ranks : {2, 4}) {
    run_threads(ranks, [&](Communicator& comm) {
      Rank rank(comm, 60);
      EXPECT_EQ(rank.sum->name(), "nccl");
      for (const int64_t count : {0, 1, 5120, (1 << 20) + 3}) {
        Random random(static_cast<uint64_t>(count * 10 + comm.rank()));
        std::vector<float> expected(static_cast<size_t>(count));
        for (float& value : expected) value = static_cast<float>(random.normal());
        const Buffer buffer = rank.backend->allocate(4 * count + 4);
        rank.backend->upload(buffer.data(), expected.data(), 4 * count);
        rank.sum->all_reduce_sum(buffer.as<float>(), count);
        comm.all_reduce_sum(expected.data(), count);
        std::vector<float> actual(expected.size());
        rank.backend->download(actual.data(), buffer.data(), 4 * count);
        EXPECT_EQ(actual, expected) << count << " on " << ranks;
      }
      comm.barrier();
    });
  }
  EXPECT_EQ(simt::nccl_calls().destroyed, 6);
  EXPECT_EQ(simt::nccl_calls().aborted, 0);
}

// A call that is not done when it returns is waited for, at first without sleeping.
TEST_F(NcclSumTest, WaitsForCallsThatAreStillInProgress) {
  for (const int polls : {1, 1000}) {
    simt::set_nccl({.missing = false, .polls = polls});
    run_threads(4, [&](Communicator& comm) {
      Rank rank(comm, 60);
      for (int i = 0; i < 4; ++i) rank.step();
      rank.backend->synchronize();
      rank.sum->check();
      comm.barrier();
    });
    EXPECT_EQ(simt::nccl_calls().destroyed, 4);
    EXPECT_EQ(simt::nccl_calls().aborted, 0);
  }
}

// A run that went well: the sum goes before the backend with its graphs, and its communicator must not wait for them.
TEST_F(NcclSumTest, EndsWhileTheBackendHasGraphsOfIt) {
  run_threads(2, [&](Communicator& comm) {
    Rank rank(comm, 60);
    for (int i = 0; i < 4; ++i) rank.step();
    comm.barrier();
    EXPECT_EQ(simt::nccl_calls().recorded, 2);
    comm.barrier();
    rank.sum.reset();
    comm.barrier();
    EXPECT_EQ(simt::nccl_calls().recorded, 0);
  });
  EXPECT_EQ(simt::nccl_calls().destroyed, 2);
  EXPECT_EQ(simt::nccl_calls().aborted, 0);
  EXPECT_EQ(simt::nccl_calls().endless, 0);
}

// A rank is gone while a graph waits for it: polling tells, and the abort that ends the graph waits for no graph.
TEST_F(NcclSumTest, AnErrorThatPollingTellsEndsASumThatWaits) {
  run_threads(2, [&](Communicator& comm) {
    Rank rank(comm, 60);
    for (int i = 0; i < 3; ++i) rank.step();
    comm.barrier();
    if (comm.rank() == 0) simt::set_nccl({.missing = false, .asynchronous = true, .stuck = true});
    comm.barrier();
    rank.step();
    const std::string message = failure_of(ErrorKind::peer, [&] { rank.backend->synchronize(); });
    EXPECT_EQ(message, "NCCL: a sum over ranks on rank " + std::to_string(comm.rank()) +
                           ": remote process exited or there was a network error (socket closed by peer)");
    EXPECT_EQ(failure_of(ErrorKind::peer, [&] { rank.sum->check(); }), "NCCL was aborted");
    EXPECT_THROW(rank.sum->all_reduce_sum(rank.data.as<float>(), 1), Error);
    comm.barrier();
  });
  EXPECT_EQ(simt::nccl_calls().aborted, 2);
  EXPECT_EQ(simt::nccl_calls().destroyed, 0);
  EXPECT_EQ(simt::nccl_calls().endless, 0);
}

// Nobody says anything: the wait ends 5 s after the limit, as all sums do (kernels/cuda/sums.cu).
TEST_F(NcclSumTest, ASumThatNeverEndsIsAbortedInTime) {
  run_threads(2, [&](Communicator& comm) {
    Rank rank(comm, 0.1);
    for (int i = 0; i < 3; ++i) rank.step();
    comm.barrier();
    if (comm.rank() == 0) simt::set_nccl({.missing = false, .stuck = true});
    comm.barrier();
    rank.step();
    const std::string message = failure_of(ErrorKind::peer, [&] { rank.backend->synchronize(); });
    EXPECT_EQ(message, "a sum over ranks (nccl) did not end within 5 s: another rank did not arrive");
    comm.barrier();
  });
  EXPECT_EQ(simt::nccl_calls().aborted, 2);
  EXPECT_EQ(simt::nccl_calls().endless, 0);
}

TEST_F(NcclSumTest, CallsThatNeverEndAreAbortedInTime) {
  // In a sum.
  run_threads(2, [&](Communicator& comm) {
    Rank rank(comm, 0.1);
    comm.barrier();
    if (comm.rank() == 0) simt::set_nccl({.missing = false, .unending = true});
    comm.barrier();
    EXPECT_NE(failure_of(ErrorKind::peer, [&] { rank.step(); }).find("ncclAllReduce on rank"), std::string::npos);
    comm.barrier();
  });
  EXPECT_EQ(simt::nccl_calls().aborted, 2);
  // At the end of a run, with graphs.
  simt::set_nccl({.missing = false});
  run_threads(2, [&](Communicator& comm) {
    Rank rank(comm, 0.1);
    for (int i = 0; i < 3; ++i) rank.step();
    comm.barrier();
    if (comm.rank() == 0) simt::set_nccl({.missing = false, .unending = true});
    comm.barrier();
  });
  EXPECT_EQ(simt::nccl_calls().aborted, 2);
  EXPECT_EQ(simt::nccl_calls().endless, 0);
  // And at its beginning.
  run_threads(2, [&](Communicator& comm) {
    EXPECT_NE(failure_of(ErrorKind::peer, [&] { Rank(comm, 0.1); }).find("ncclCommInitRankConfig on rank"), std::string::npos);
    comm.barrier();
  });
  EXPECT_EQ(simt::nccl_calls().aborted, 4);
}

// What is recorded when a call fails holds the communicator: the abort comes when the recording has ended.
TEST_F(NcclSumTest, AFailureWhileAStepIsRecordedIsAbortedAfterIt) {
  run_threads(2, [&](Communicator& comm) {
    Rank rank(comm, 0.1);
    int calls = 0;
    const auto step = [&] {
      const int32_t id = 1;
      const Span span{.row = 0, .tokens = 1, .position = 0, .slot = 0};
      rank.backend->run_step({.ids = &id, .tokens = 1, .spans = {&span, 1}, .key = {.owner = 1, .tokens = 1}}, [&] {
        ++calls;
        rank.sum->all_reduce_sum(rank.data.as<float>(), 512);
        if (calls == 2) {
          comm.barrier();
          if (comm.rank() == 0) simt::set_nccl({.missing = false, .unending = true});
          comm.barrier();
        }
        rank.sum->all_reduce_sum(rank.data.as<float>(), 512);
      });
    };
    step();
    EXPECT_NE(failure_of(ErrorKind::peer, step).find("did not end within 0 s"), std::string::npos);
    EXPECT_EQ(calls, 3);
    comm.barrier();
  });
  EXPECT_EQ(simt::nccl_calls().aborted, 2);
  EXPECT_EQ(simt::nccl_calls().endless, 0);
}

}  // namespace
}  // namespace pq
