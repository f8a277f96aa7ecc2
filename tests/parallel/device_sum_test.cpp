// Sums over ranks in device memory: the pushing kernels under emulation, ranks as threads, and the choice between the ways.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "comm/checked_comm.h"
#include "comm/sum_choice.h"
#include "tests/support/simt/emulated_backend.h"
#include "tests/support/simt/simt.h"

namespace pq {
namespace {

RankExchange exchange_of(Communicator& comm) {
  return {.rank = comm.rank(),
          .ranks = comm.size(),
          .one_node = true,
          .all_gather = [&comm](const void* data, int64_t bytes, void* out) { comm.all_gather(data, bytes, out); }};
}

std::vector<float> values_of(int rank, int64_t count, uint64_t seed) {
  Random random(seed * 100 + static_cast<uint64_t>(rank));
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(random.normal());
  return values;
}

class PushSumTest : public ::testing::TestWithParam<std::tuple<const char*, int>> {};

// Many sums of different lengths in a row: the sets of packets take turns, and what a longer sum left behind must not be taken for
// news.
TEST_P(PushSumTest, GivesTheBitsOfTheHostsTree) {
  const auto [method, ranks] = GetParam();
  run_threads(ranks, [&, method = method](Communicator& comm) {
    const std::unique_ptr<Backend> backend = make_emulated_cuda_backend(comm.rank() % 2);
    const std::unique_ptr<DeviceSum> sum = make_emulated_sum(*backend, method, exchange_of(comm), 60);
    EXPECT_EQ(sum->name(), method);
    const std::unique_ptr<Communicator> device = make_device_communicator(comm, *sum);
    EXPECT_TRUE(device->sums_on_device());
    uint64_t seed = 0;
    for (const int64_t count : {0, 1, 5120, 3, 5120, 8193, 511, 70000, 5120, 2}) {
      std::vector<float> expected = values_of(comm.rank(), count, ++seed);
      const Buffer buffer = backend->allocate(4 * count + 4);
      backend->upload(buffer.data(), expected.data(), 4 * count);
      device->all_reduce_sum(buffer.as<float>(), count);
      comm.all_reduce_sum(expected.data(), count);
      std::vector<float> actual(expected.size());
      backend->download(actual.data(), buffer.data(), 4 * count);
      EXPECT_EQ(actual, expected) << count;
      float beyond = 1.0f;
      backend->download(&beyond, buffer.as<float>() + count, 4);
      EXPECT_EQ(beyond, 0.0f);
    }
    comm.barrier();
  });
}

// --check-collectives holds for sums that do not pass by the host.
TEST_P(PushSumTest, IsComparedFirstWhereCollectivesAre) {
  class Outer : public Communicator {
   public:
    explicit Outer(Communicator& inner) : inner_(inner) {}
    int rank() const override { return inner_.rank(); }
    int size() const override { return inner_.size(); }
    std::string name() const override { return inner_.name(); }
    void all_reduce_sum(float* data, int64_t count) override { inner_.all_reduce_sum(data, count); }
    void all_gather(const void* data, int64_t bytes, void* out) override { inner_.all_gather(data, bytes, out); }
    void gather(const void* data, int64_t bytes, void* out) override { inner_.gather(data, bytes, out); }
    void broadcast(void* data, int64_t bytes) override { inner_.broadcast(data, bytes); }
    void barrier() override { inner_.barrier(); }

   private:
    Communicator& inner_;
  };
  const auto [method, ranks] = GetParam();
  const auto body = [&, method = method](Communicator& comm) {
    const std::unique_ptr<Backend> backend = make_emulated_cuda_backend(comm.rank() % 2);
    const std::unique_ptr<DeviceSum> sum = make_emulated_sum(*backend, method, exchange_of(comm), 60);
    CheckedCommunicator checked(std::make_unique<Outer>(comm));
    const std::unique_ptr<Communicator> device = make_device_communicator(checked, *sum);
    const Buffer buffer = backend->allocate(4 * 512);
    backend->zero(buffer.data(), 4 * 512);
    device->all_reduce_sum(buffer.as<float>(), 256);
    const bool odd = comm.rank() == comm.size() - 1;
    const RmsNormArgs args{.y = buffer.as<float>(),
                           .x = buffer.as<float>(),
                           .weight = buffer.as<float>(),
                           .rows = odd ? 2 : 1,
                           .dim = 128,
                           .eps = 1e-6f,
                           .weight_offset = 1.0f,
                           .prepared = {},
                           .added = buffer.as<float>() + 256,
                           .sum = buffer.as<float>()};
    device->try_sum_and_norm(args);
    ADD_FAILURE() << "not compared";
  };
  try {
    run_threads(ranks, body);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::internal);
    // The threads have one record of what they do.
    EXPECT_THAT(error.what(),
                testing::ContainsRegex("rank 0 calls all_reduce of 128 as its collective 2 in (all_reduce of )?start, but "
                                       "rank " +
                                       std::to_string(ranks - 1) + " calls all_reduce of 256"));
  }
}

// A sum, what it joins, the norm and the coded form in one launch, among sums of the other kind: the bits of the four one by one.
TEST_P(PushSumTest, AddsAndNormalisesWithTheBitsOfEachApart) {
  const auto [method, ranks] = GetParam();
  run_threads(ranks, [&, method = method](Communicator& comm) {
    const std::unique_ptr<Backend> backend = make_emulated_cuda_backend(comm.rank() % 2);
    const std::unique_ptr<DeviceSum> sum = make_emulated_sum(*backend, method, exchange_of(comm), 60);
    const std::unique_ptr<Communicator> device = make_device_communicator(comm, *sum);
    uint64_t seed = 0;
    const std::pair<int64_t, int64_t> shapes[] = {{1, 5120}, {3, 384}, {1, 40}, {12, 5120}, {16, 128}, {1, 5120}};
    for (const auto& [rows, dim] : shapes) {
      const int64_t count = rows * dim;
      const bool coded = dim % kBlock == 0;
      const std::vector<float> part = values_of(comm.rank(), count, ++seed), stream = values_of(99, count, seed);
      const std::vector<float> weight = values_of(98, dim, seed);
      // Alone, by the host's sum, in the first place; at once in the second.
      struct Place {
        Buffer part, stream, y, weight, codes, scales;
      };
      const auto run = [&, rows = rows, dim = dim](bool fused) {
        const Place place{backend->allocate(4 * count), backend->allocate(4 * count), backend->allocate(4 * count),
                          backend->allocate(4 * dim),   backend->allocate(count),     backend->allocate(4 * count)};
        std::vector<float> added = part;
        if (!fused) comm.all_reduce_sum(added.data(), count);
        backend->upload(place.part.data(), added.data(), 4 * count);
        backend->upload(place.stream.data(), stream.data(), 4 * count);
        backend->upload(place.weight.data(), weight.data(), 4 * dim);
        RmsNormArgs args{.y = place.y.as<float>(),
                         .x = place.stream.as<float>(),
                         .weight = place.weight.as<float>(),
                         .rows = rows,
                         .dim = dim,
                         .eps = 1e-6f,
                         .weight_offset = 1.0f,
                         .prepared = {},
                         .added = place.part.as<float>(),
                         .sum = place.stream.as<float>()};
        if (coded) args.prepared = {.codes = place.codes.as<int8_t>(), .scales = place.scales.as<float>()};
        if (fused) {
          EXPECT_TRUE(device->try_sum_and_norm(args));
        } else {
          backend->rms_norm(args);
        }
        std::vector<char> bytes(static_cast<size_t>(13 * count));
        backend->download(bytes.data(), place.stream.data(), 4 * count);
        backend->download(bytes.data() + 4 * count, place.y.data(), 4 * count);
        backend->download(bytes.data() + 8 * count, place.codes.data(), count);
        backend->download(bytes.data() + 9 * count, place.scales.data(), 4 * count);
        return bytes;
      };
      EXPECT_EQ(run(true), run(false)) << rows << " rows of " << dim;
      // A sum of the other kind between two of this one.
      std::vector<float> expected = values_of(comm.rank(), 700, seed + 50);
      const Buffer buffer = backend->allocate(2800);
      backend->upload(buffer.data(), expected.data(), 2800);
      device->all_reduce_sum(buffer.as<float>(), 700);
      comm.all_reduce_sum(expected.data(), 700);
      std::vector<float> actual(700);
      backend->download(actual.data(), buffer.data(), 2800);
      EXPECT_EQ(actual, expected);
    }
    // What is too much for one launch is left to two, on every rank alike.
    const Buffer large = backend->allocate(4 * 17 * 5120);
    float* data = large.as<float>();
    for (const auto& [rows, dim] : {std::pair<int64_t, int64_t>{17, 128}, {13, 5120}, {1, 10496}}) {
      EXPECT_FALSE(device->try_sum_and_norm({.y = data,
                                             .x = data,
                                             .weight = data,
                                             .rows = rows,
                                             .dim = dim,
                                             .eps = 1,
                                             .weight_offset = 0,
                                             .added = data,
                                             .sum = data}));
    }
    EXPECT_FALSE(comm.try_sum_and_norm(
        {.y = data, .x = data, .weight = data, .rows = 1, .dim = 128, .eps = 1, .weight_offset = 0, .added = data, .sum = data}));
    comm.barrier();
  });
}

// A rank that never comes: the others give up in time and say so.
TEST_P(PushSumTest, AMissingRankEndsInAnError) {
  const auto [method, ranks] = GetParam();
  run_threads(ranks, [&, method = method](Communicator& comm) {
    const std::unique_ptr<Backend> backend = make_emulated_cuda_backend();
    const std::unique_ptr<DeviceSum> sum = make_emulated_sum(*backend, method, exchange_of(comm), 0.2);
    const Buffer buffer = backend->allocate(512);
    float* data = buffer.as<float>();
    if (comm.rank() != 0) {
      if (comm.rank() == 1) {
        sum->all_reduce_sum(data, 100);
      } else {
        EXPECT_TRUE(sum->try_sum_and_norm({.y = data,
                                           .x = data,
                                           .weight = data,
                                           .rows = 1,
                                           .dim = 100,
                                           .eps = 1,
                                           .weight_offset = 0,
                                           .added = data,
                                           .sum = data}));
      }
      try {
        backend->synchronize();
        ADD_FAILURE() << "a sum without rank 0";
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::peer);
        EXPECT_NE(std::string(error.what()).find("another rank did not arrive"), std::string::npos) << error.what();
      }
    }
    comm.barrier();
  });
}

TEST_P(PushSumTest, AbortEndsASumThatWaits) {
  const auto [method, ranks] = GetParam();
  run_threads(ranks, [&, method = method](Communicator& comm) {
    const std::unique_ptr<Backend> backend = make_emulated_cuda_backend();
    const std::unique_ptr<DeviceSum> sum = make_emulated_sum(*backend, method, exchange_of(comm), 3600);
    const Buffer buffer = backend->allocate(400);
    if (comm.rank() == 0) {
      std::thread other([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        sum->abort();
      });
      sum->all_reduce_sum(buffer.as<float>(), 100);
      other.join();
      EXPECT_THROW(sum->check(), Error);
    }
    comm.barrier();
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, PushSumTest, ::testing::Combine(::testing::Values("p2p", "host"), ::testing::Values(2, 4, 8)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)) + std::to_string(std::get<1>(info.param));
                         });

// A rank may end its sum while another has its memory mapped: it is not freed, and a later sum that uses it again does not take the
// packets of the first for news.
TEST(DeviceSums, LeaveMemoryThatIsMappedToTheNext) {
  const int64_t before = simt::freed_while_mapped();
  run_threads(2, [&](Communicator& comm) {
    const std::unique_ptr<Backend> backend = make_emulated_cuda_backend(comm.rank());
    const Buffer buffer = backend->allocate(4 * 100);
    const auto add = [&](DeviceSum& sum, float value) {
      std::vector<float> values(100, value);
      backend->upload(buffer.data(), values.data(), 400);
      sum.all_reduce_sum(buffer.as<float>(), 100);
      backend->download(values.data(), buffer.data(), 400);
      return values;
    };
    std::unique_ptr<DeviceSum> sum = make_emulated_sum(*backend, "p2p", exchange_of(comm), 60);
    EXPECT_EQ(add(*sum, 1.0f), std::vector<float>(100, 2.0f));
    comm.barrier();
    const int64_t used = simt::memory_used();
    comm.barrier();
    if (comm.rank() == 0) sum.reset();
    comm.barrier();
    EXPECT_EQ(simt::freed_while_mapped(), before);
    comm.barrier();
    sum.reset();
    sum = make_emulated_sum(*backend, "p2p", exchange_of(comm), 60);
    comm.barrier();
    EXPECT_EQ(simt::memory_used(), used);
    comm.barrier();
    // Time for the other to read what there is.
    if (comm.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_EQ(add(*sum, 2.0f), std::vector<float>(100, 4.0f));
    comm.barrier();
    sum.reset();
    comm.barrier();
  });
  EXPECT_EQ(simt::freed_while_mapped(), before);
}

TEST(DeviceSums, SayWhyTheyAreImpossible) {
  run_threads(2, [&](Communicator& comm) {
    const std::unique_ptr<Backend> backend = make_emulated_cuda_backend();
    RankExchange exchange = exchange_of(comm);
    EXPECT_THROW(make_emulated_sum(*backend, "nccl", exchange, 1), Error);
    exchange.one_node = false;
    EXPECT_THROW(make_emulated_sum(*backend, "p2p", exchange, 1), Error);
    // Too little device memory on one rank is the end of it on both.
    const std::unique_ptr<Backend> small = make_emulated_cuda_backend(0, comm.rank() == 0 ? int64_t{5} << 20 : 0);
    EXPECT_THROW(make_emulated_sum(*small, "p2p", exchange_of(comm), 1), Error);
    comm.barrier();
  });
}

// Forwards to another sum, and adds one to the first value: what P2P through a broken bridge does.
class WrongSum : public DeviceSum {
 public:
  WrongSum(Backend& backend, std::unique_ptr<DeviceSum> sum) : backend_(backend), sum_(std::move(sum)) {}
  std::string name() const override { return sum_->name(); }
  void all_reduce_sum(float* data, int64_t count) override {
    sum_->all_reduce_sum(data, count);
    float value = 0;
    backend_.download(&value, data, 4);
    value += 1;
    backend_.upload(data, &value, 4);
  }
  bool try_sum_and_norm(const RmsNormArgs& args) override { return sum_->try_sum_and_norm(args); }
  void check() override { sum_->check(); }
  void abort() override { sum_->abort(); }

 private:
  Backend& backend_;
  std::unique_ptr<DeviceSum> sum_;
};

TEST(DeviceSums, TheProbeFindsWrongSumsAndTheOthersAreChosen) {
  run_threads(2, [&](Communicator& comm) {
    const std::unique_ptr<Backend> backend = make_emulated_cuda_backend();
    const auto make = [&](const std::string& method, double limit) -> std::unique_ptr<DeviceSum> {
      std::unique_ptr<DeviceSum> sum = make_emulated_sum(*backend, method, exchange_of(comm), limit);
      // Wrong on one rank only.
      if (method == "p2p" && comm.rank() == 1) return std::make_unique<WrongSum>(*backend, std::move(sum));
      return sum;
    };
    const std::vector<SumProbe> probes = probe_sums(*backend, comm, "auto", 320, make);
    ASSERT_EQ(probes.size(), 4u);
    EXPECT_EQ(probes[0].method, "p2p");
    EXPECT_EQ(probes[0].wrong_sums, 16);
    EXPECT_EQ(probes[0].wrong_norms, 0);
    EXPECT_EQ(probes[1].wrong_sums, 0);
    EXPECT_EQ(probes[1].checked_sums, 16);
    EXPECT_GT(probes[1].us, 0.0);
    EXPECT_NE(probes[2].problem.find("libnccl"), std::string::npos) << probes[2].problem;
    EXPECT_EQ(probes[3].problem, "");
    EXPECT_EQ(probes[3].wrong_sums, 0);
    const SumChoice choice = choose_sum("auto", probes);
    EXPECT_TRUE(choice.method == "host" || choice.method == "mpi");
    ASSERT_EQ(choice.remarks.size(), 1u);
    EXPECT_EQ(choice.remarks[0], "sums by p2p were wrong 16 of 16 times: not used");
    EXPECT_EQ(probe_sums(*backend, comm, "host", 320, make).size(), 1u);
    comm.barrier();
  });
}

// Forwards to another sum, whose fused form it spoils in one of its four results, in the last row alone.
class WrongNorm : public DeviceSum {
 public:
  WrongNorm(Backend& backend, std::unique_ptr<DeviceSum> sum, int spoiled)
      : backend_(backend), sum_(std::move(sum)), spoiled_(spoiled) {}
  std::string name() const override { return sum_->name(); }
  void all_reduce_sum(float* data, int64_t count) override { sum_->all_reduce_sum(data, count); }
  bool try_sum_and_norm(const RmsNormArgs& args) override {
    if (!sum_->try_sum_and_norm(args)) return false;
    const int64_t last = args.rows * args.dim - 1;
    if (spoiled_ == 0) spoil(args.sum + last);
    if (spoiled_ == 1) spoil(args.y + last);
    if (spoiled_ == 2 && args.prepared.codes != nullptr) spoil(args.prepared.codes + last);
    if (spoiled_ == 3 && args.prepared.rotated != nullptr) spoil(args.prepared.rotated + last);
    return true;
  }
  void check() override { sum_->check(); }
  void abort() override { sum_->abort(); }

 private:
  // The last bit of a value.
  void spoil(void* place) {
    char byte = 0;
    backend_.download(&byte, place, 1);
    byte = static_cast<char>(byte ^ 1);
    backend_.upload(place, &byte, 1);
  }

  Backend& backend_;
  std::unique_ptr<DeviceSum> sum_;
  const int spoiled_;
};

// A wrong last bit on one rank, in whichever result, is enough. Of four ranks the codes alone, for the time it takes.
TEST(DeviceSums, TheProbeFindsWrongNormsOfRightSums) {
  for (const int ranks : {2, 4}) {
    run_threads(ranks, [&](Communicator& comm) {
      const std::unique_ptr<Backend> backend = make_emulated_cuda_backend();
      for (int spoiled = ranks == 2 ? 0 : 2; spoiled < (ranks == 2 ? 4 : 3); ++spoiled) {
        const auto make = [&](const std::string& method, double limit) -> std::unique_ptr<DeviceSum> {
          std::unique_ptr<DeviceSum> sum = make_emulated_sum(*backend, method, exchange_of(comm), limit);
          if (comm.rank() == ranks - 1) return std::make_unique<WrongNorm>(*backend, std::move(sum), spoiled);
          return sum;
        };
        const std::vector<SumProbe> probes = probe_sums(*backend, comm, "p2p", 384, make);
        ASSERT_EQ(probes.size(), 1u);
        EXPECT_EQ(probes[0].problem, "");
        EXPECT_EQ(probes[0].wrong_sums, 0);
        EXPECT_EQ(probes[0].checked_norms, 12);
        // The coded form is of one mode in every second round.
        EXPECT_EQ(probes[0].wrong_norms, spoiled < 2 ? 12 : 6) << spoiled;
      }
      comm.barrier();
    });
  }
}

// Both ways that fuse give right norms, of rows in whole blocks, in none, and of rows of which twelve are left to two launches and
// not counted.
TEST(DeviceSums, TheProbeAcceptsTheNormsOfPushingSums) {
  for (const int ranks : {2, 4}) {
    run_threads(ranks, [&](Communicator& comm) {
      const std::unique_ptr<Backend> backend = make_emulated_cuda_backend();
      const auto make = [&](const std::string& method, double limit) {
        return make_emulated_sum(*backend, method, exchange_of(comm), limit);
      };
      for (const auto& [residual, checked] : {std::pair<int64_t, int64_t>{384, 12}, {40, 12}, {5504, 8}}) {
        if (ranks == 4 && residual != 384) continue;
        const std::vector<SumProbe> probes = probe_sums(*backend, comm, "auto", residual, make);
        ASSERT_EQ(probes.size(), 4u);
        for (const size_t push : {0, 1}) {
          EXPECT_EQ(probes[push].problem, "");
          EXPECT_EQ(probes[push].wrong_norms, 0);
          EXPECT_EQ(probes[push].checked_norms, checked) << residual;
        }
        EXPECT_EQ(probes[3].checked_norms, 0);
        EXPECT_TRUE(choose_sum("auto", probes).remarks.empty());
      }
      comm.barrier();
    });
  }
}

SumProbe ran(const char* method, double us, int64_t wrong = 0) {
  return {.method = method, .problem = "", .wrong_sums = wrong, .checked_sums = 16, .checked_norms = 12, .us = us};
}
SumProbe wrong_norms(const char* method, int64_t wrong) {
  return {.method = method, .problem = "", .checked_sums = 16, .wrong_norms = wrong, .checked_norms = 12, .us = 8};
}
SumProbe impossible(const char* method, const char* why) { return {.method = method, .problem = why}; }

TEST(ChooseSum, TakesTheFastestThatIsRight) {
  EXPECT_EQ(choose_sum("auto", {ran("p2p", 8), ran("host", 12), ran("nccl", 30), ran("mpi", 60)}).method, "p2p");
  EXPECT_EQ(choose_sum("auto", {ran("p2p", 40), ran("host", 12), ran("nccl", 30), ran("mpi", 60)}).method, "host");
  EXPECT_EQ(choose_sum("auto", {ran("p2p", 8, 1), ran("host", 40), ran("nccl", 30), ran("mpi", 60)}).method, "nccl");
  EXPECT_EQ(choose_sum("auto", {impossible("p2p", "x"), impossible("host", "y"), impossible("nccl", "z"), ran("mpi", 60)}).method,
            "mpi");
  // Within 5 % the earlier stays.
  EXPECT_EQ(choose_sum("auto", {ran("p2p", 10.2), ran("host", 10), ran("nccl", 30), ran("mpi", 60)}).method, "p2p");
  EXPECT_EQ(choose_sum("auto", {ran("p2p", 10.6), ran("host", 10), ran("nccl", 30), ran("mpi", 60)}).method, "host");
  EXPECT_TRUE(choose_sum("auto", {ran("p2p", 8), ran("mpi", 60)}).remarks.empty());
  const SumChoice choice = choose_sum("auto", {ran("host", 12), wrong_norms("p2p", 3), ran("mpi", 60)});
  EXPECT_EQ(choice.method, "host");
  EXPECT_EQ(choice.remarks, std::vector<std::string>{"sums fused with a norm by p2p were wrong 3 of 12 times: not used"});
}

void expect_error(const std::string& requested, const std::vector<SumProbe>& probes, ErrorKind kind, const std::string& text) {
  try {
    choose_sum(requested, probes);
    ADD_FAILURE() << requested;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind);
    EXPECT_EQ(error.what(), text);
  }
}

TEST(ChooseSum, ANameTakesThatWayOrSaysWhyNot) {
  EXPECT_EQ(choose_sum("nccl", {ran("nccl", 99)}).method, "nccl");
  expect_error("p2p", {impossible("p2p", "the ranks are on several nodes")}, ErrorKind::environment,
               "--allreduce p2p: the ranks are on several nodes; take --allreduce auto");
  expect_error("p2p", {ran("p2p", 8, 3)}, ErrorKind::environment,
               "--allreduce p2p: sums by p2p were wrong 3 of 16 times; take --allreduce auto");
  expect_error("p2p", {wrong_norms("p2p", 3)}, ErrorKind::environment,
               "--allreduce p2p: sums fused with a norm by p2p were wrong 3 of 12 times; take --allreduce auto");
  expect_error("ring", {}, ErrorKind::usage,
               "there is no way to add over ranks called 'ring'; ways are auto, nccl, p2p, host and mpi");
  expect_error("auto", {ran("mpi", 8, 3)}, ErrorKind::environment, "no way to add over ranks gives right sums on these devices");
}

}  // namespace
}  // namespace pq
