// Sockets of node_links.h. What travels is RankNews as it lies in memory: ranks of one job run one binary.
#include "comm/node_links.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <mpi.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "base/signals.h"
#include "comm/mpi_comm.h"

namespace pq {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kAddresses = 8;
constexpr int kHostBytes = 64;
// For one address to answer, for what answers to prove itself, and for all ranks to be there: a filtered port answers nothing.
constexpr auto kOneAddress = std::chrono::milliseconds(500);
constexpr auto kProof = std::chrono::seconds(2);
constexpr auto kAllRanks = std::chrono::seconds(5);

struct Hub {
  uint64_t token = 0;
  int32_t count = 0;  // 0: rank 0 cannot listen
  uint16_t port = 0;  // network order, as the addresses
  std::array<uint32_t, kAddresses> addresses{};
};

struct Hello {
  uint64_t token;
  int64_t rank;
};

int left_ms(Clock::time_point deadline) {
  return static_cast<int>(
      std::max<int64_t>(0, std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count()));
}

// All of `bytes` before the deadline; non-blocking socket.
bool transfer(int fd, void* data, size_t bytes, bool out, Clock::time_point deadline) {
  auto* at = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t done = out ? ::send(fd, at, bytes, MSG_NOSIGNAL) : ::recv(fd, at, bytes, 0);
    if (done > 0) {
      at += done;
      bytes -= static_cast<size_t>(done);
      continue;
    }
    if (done == 0 || (errno != EAGAIN && errno != EINTR)) return false;
    pollfd ready{fd, static_cast<short>(out ? POLLOUT : POLLIN), 0};
    if (left_ms(deadline) == 0 || ::poll(&ready, 1, left_ms(deadline)) == 0) return false;
  }
  return true;
}

void prepare_socket(int fd) {
  const int one = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

// Addresses of this machine that are up, those of the loopback interface last: for ranks of containers on one machine.
void list_addresses(Hub* hub) {
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) return;
  for (const bool loopback : {false, true}) {
    for (const ifaddrs* a = all; a != nullptr && hub->count < kAddresses; a = a->ifa_next) {
      if (a->ifa_addr == nullptr || a->ifa_addr->sa_family != AF_INET || (a->ifa_flags & IFF_UP) == 0) continue;
      if (((a->ifa_flags & IFF_LOOPBACK) != 0) != loopback) continue;
      sockaddr_in address{};
      std::memcpy(&address, a->ifa_addr, sizeof address);
      hub->addresses[static_cast<size_t>(hub->count++)] = address.sin_addr.s_addr;
    }
  }
  ::freeifaddrs(all);
}

// -1 where sockets are not to be had.
int listen_anywhere(Hub* hub) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_ANY);
  socklen_t size = sizeof address;
  if (fd >= 0 && ::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 && ::listen(fd, SOMAXCONN) == 0 &&
      ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0 &&
      ::getrandom(&hub->token, sizeof hub->token, 0) == sizeof hub->token) {
    hub->port = address.sin_port;
    list_addresses(hub);
    return fd;
  }
  if (fd >= 0) ::close(fd);
  return -1;
}

// A socket to rank 0, which has proved itself; -1: not at this address.
int connect_to(uint32_t where, uint16_t port, uint64_t token, int rank, Clock::time_point deadline) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -1;
  prepare_socket(fd);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = port;
  address.sin_addr.s_addr = where;
  const bool under_way = ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 || errno == EINPROGRESS;
  pollfd ready{fd, POLLOUT, 0};
  if (under_way && ::poll(&ready, 1, left_ms(std::min(deadline, Clock::now() + kOneAddress))) > 0) {
    const Clock::time_point until = std::min(deadline, Clock::now() + kProof);
    Hello hello{token, rank};
    uint64_t answer = 0;
    if (transfer(fd, &hello, sizeof hello, true, until) && transfer(fd, &answer, sizeof answer, false, until) && answer == ~token &&
        transfer(fd, &token, sizeof token, true, until))
      return fd;
  }
  ::close(fd);
  return -1;
}

std::unique_ptr<NodeLink> make_link(int fd, int rank, const char* host) {
  auto link = std::make_unique<NodeLink>();
  link->fd = fd;
  link->rank = rank;
  link->host = host;
  link->record.rank = rank;
  return link;
}

}  // namespace

NodeLinks::NodeLinks(bool shares_board_of_rank_0) {
  int rank = 0, ranks = 1;
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &rank), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &ranks), "MPI_Comm_size");
  const int mine = shares_board_of_rank_0 ? 0 : 1;
  std::vector<int> apart(static_cast<size_t>(ranks));
  check_mpi(MPI_Allgather(&mine, 1, MPI_INT, apart.data(), 1, MPI_INT, MPI_COMM_WORLD), "MPI_Allgather");
  const auto strangers = std::count(apart.begin(), apart.end(), 1);
  if (strangers == 0) return;
  speaks_first_ = rank == 0 || (rank == 1 && strangers == ranks - 1);

  char host[kHostBytes] = {};
  if (::gethostname(host, sizeof host - 1) != 0) host[0] = '?';
  std::vector<char> hosts(static_cast<size_t>(ranks) * kHostBytes);
  check_mpi(MPI_Allgather(host, kHostBytes, MPI_CHAR, hosts.data(), kHostBytes, MPI_CHAR, MPI_COMM_WORLD), "MPI_Allgather");
  Hub hub;
  const char* nodes = std::getenv("PQ_NODES");
  const bool wanted = nodes == nullptr || std::strcmp(nodes, "unlinked") != 0;
  const int listener = rank == 0 && wanted ? listen_anywhere(&hub) : -1;
  check_mpi(MPI_Bcast(&hub, sizeof hub, MPI_BYTE, 0, MPI_COMM_WORLD), "MPI_Bcast");
  if (rank == 0) {
    if (hub.count > 0) accept_all(listener, hub.token, apart, hosts);
    if (listener >= 0) ::close(listener);
    for (int other = 0; other < ranks; ++other) {
      const auto linked = [&](const auto& link) { return link->rank == other; };
      if (apart[static_cast<size_t>(other)] != 0 && std::none_of(links_.begin(), links_.end(), linked)) missing_.push_back(other);
    }
  } else if (mine != 0) {
    const Clock::time_point deadline = Clock::now() + kAllRanks;
    for (int i = 0; i < hub.count && links_.empty() && Clock::now() < deadline; ++i) {
      const int fd = connect_to(hub.addresses[static_cast<size_t>(i)], hub.port, hub.token, rank, deadline);
      if (fd >= 0) links_.push_back(make_link(fd, 0, hosts.data()));
    }
  }
  publish();
}

void NodeLinks::accept_all(int listener, uint64_t token, const std::vector<int>& apart, const std::vector<char>& hosts) {
  const auto wanted = static_cast<size_t>(std::count(apart.begin(), apart.end(), 1));
  const Clock::time_point deadline = Clock::now() + kAllRanks + kOneAddress;
  while (links_.size() < wanted) {
    pollfd ready{listener, POLLIN, 0};
    if (left_ms(deadline) == 0 || ::poll(&ready, 1, left_ms(deadline)) == 0) break;
    const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0 && errno != EINTR && errno != EAGAIN && errno != ECONNABORTED) break;
    if (fd < 0) continue;
    prepare_socket(fd);
    Hello hello{};
    uint64_t answer = ~token, proof = 0;
    const Clock::time_point until = std::min(deadline, Clock::now() + kOneAddress);
    const bool known = transfer(fd, &hello, sizeof hello, false, until) && hello.token == token && hello.rank > 0 &&
                       hello.rank < static_cast<int64_t>(apart.size()) && apart[static_cast<size_t>(hello.rank)] != 0;
    // The third message tells a rank that waits for this answer from one that has given the address up meanwhile.
    if (!known || !transfer(fd, &answer, sizeof answer, true, until) || !transfer(fd, &proof, sizeof proof, false, until) ||
        proof != token) {
      ::close(fd);
      continue;
    }
    const auto before = std::find_if(links_.begin(), links_.end(), [&](const auto& link) { return link->rank == hello.rank; });
    if (before != links_.end()) {
      ::close((*before)->fd);
      links_.erase(before);
    }
    links_.push_back(make_link(fd, static_cast<int>(hello.rank), hosts.data() + hello.rank * kHostBytes));
  }
  std::sort(links_.begin(), links_.end(), [](const auto& a, const auto& b) { return a->rank < b->rank; });
}

NodeLinks::~NodeLinks() {
  set_links({});
  send();
  for (const auto& link : links_)
    if (link->fd >= 0) ::close(link->fd);
}

void NodeLinks::publish() const {
  std::vector<int> fds;
  for (const auto& link : links_)
    if (link->fd >= 0) fds.push_back(link->fd);
  set_links(fds);
}

void NodeLinks::send() {
  const RankNews news = own_news();
  for (const auto& link : links_) {
    if (link->fd < 0 || link->ended) continue;
    // Where the buffer was full the rest goes first; what it delays is said again by the next.
    if (link->unsent == 0) {
      link->out = news;
      link->unsent = sizeof news;
    }
    const char* rest = reinterpret_cast<const char*>(&link->out) + sizeof news - link->unsent;
    const ssize_t sent = ::send(link->fd, rest, link->unsent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0)
      link->unsent -= static_cast<size_t>(sent);
    else if (link->unsent == sizeof news)
      link->unsent = 0;
  }
}

void NodeLinks::receive() {
  bool lost = false;
  for (const auto& link : links_) {
    const bool open = link->fd >= 0;
    if (open && !link->ended) receive(*link);
    lost |= open && link->fd < 0;
  }
  if (lost) publish();
}

void NodeLinks::receive(NodeLink& link) {
  while (true) {
    const ssize_t got =
        ::recv(link.fd, reinterpret_cast<char*>(&link.in) + link.received, sizeof link.in - link.received, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got == 0 || (got < 0 && (errno == ECONNRESET || errno == EPIPE))) {
      link.ended = true;
      return;
    }
    if (got > 0) link.received += static_cast<size_t>(got);
    if (got > 0 && link.received < sizeof link.in) continue;
    link.received = 0;
    if (got < 0 || link.in.start != kNewsStart) {
      // The network's doing, or a last word into the middle of another: silent from now on, which is late, not dead.
      ::close(link.fd);
      link.fd = -1;
      return;
    }
    const RankNews& news = link.in;
    link.heard = Clock::now();
    link.record.activity = news.activity;
    link.record.beats = news.beats;
    link.record.waits_for = news.waits_for;
    link.record.finished = news.finished;
    if (news.ended != 0) expect_end(news.ended - 1);
    int32_t none = 0;
    if (news.stop_signal != 0) job_board().stop_signal.compare_exchange_strong(none, news.stop_signal);
  }
}

}  // namespace pq
