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
#include <cstring>

#include "base/error.h"
#include "base/signals.h"
#include "comm/mpi_comm.h"

namespace pq {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kAddresses = 8;
constexpr int kHostBytes = 64;
// For one address, and for all ranks to be there: a filtered port answers nothing.
constexpr auto kOneAddress = std::chrono::milliseconds(500);
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
  if (std::find(apart.begin(), apart.end(), 1) == apart.end()) return;
  speaks_first_ = rank == 0 || (rank == 1 && mine != 0);

  char host[kHostBytes] = {};
  if (::gethostname(host, sizeof host - 1) != 0) host[0] = '?';
  std::vector<char> hosts(static_cast<size_t>(ranks) * kHostBytes);
  check_mpi(MPI_Allgather(host, kHostBytes, MPI_CHAR, hosts.data(), kHostBytes, MPI_CHAR, MPI_COMM_WORLD), "MPI_Allgather");
  Hub hub;
  const int listener = rank == 0 ? listen_anywhere(&hub) : -1;
  check_mpi(MPI_Bcast(&hub, sizeof hub, MPI_BYTE, 0, MPI_COMM_WORLD), "MPI_Bcast");
  if (rank == 0) {
    if (listener >= 0) accept_all(listener, hub.token, apart, hosts);
    for (int other = 0; other < ranks; ++other) {
      const auto linked = [&](const auto& link) { return link->rank == other; };
      if (apart[static_cast<size_t>(other)] != 0 && std::none_of(links_.begin(), links_.end(), linked)) missing_.push_back(other);
    }
  } else if (mine != 0) {
    const Clock::time_point deadline = Clock::now() + kAllRanks;
    for (int i = 0; i < hub.count && links_.empty() && Clock::now() < deadline; ++i) {
      const Clock::time_point until = std::min(deadline, Clock::now() + kOneAddress);
      sockaddr_in address{};
      address.sin_family = AF_INET;
      address.sin_port = hub.port;
      address.sin_addr.s_addr = hub.addresses[static_cast<size_t>(i)];
      const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
      if (fd < 0) break;
      prepare_socket(fd);
      ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address);
      Hello hello{hub.token, rank};
      uint64_t answer = 0;
      // The answer tells rank 0 from whatever else listens at that port on another machine of that address.
      pollfd ready{fd, POLLOUT, 0};
      if (::poll(&ready, 1, left_ms(until)) > 0 && transfer(fd, &hello, sizeof hello, true, until) &&
          transfer(fd, &answer, sizeof answer, false, until) && answer == ~hub.token)
        links_.push_back(make_link(fd, 0, hosts.data()));
      else
        ::close(fd);
    }
  }
  std::vector<int> fds;
  for (const auto& link : links_) fds.push_back(link->fd);
  set_links(fds);
}

void NodeLinks::accept_all(int listener, uint64_t token, const std::vector<int>& apart, const std::vector<char>& hosts) {
  const auto wanted = static_cast<size_t>(std::count(apart.begin(), apart.end(), 1));
  const Clock::time_point deadline = Clock::now() + kAllRanks + kOneAddress;
  while (links_.size() < wanted) {
    pollfd ready{listener, POLLIN, 0};
    if (left_ms(deadline) == 0 || ::poll(&ready, 1, left_ms(deadline)) == 0) break;
    const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) continue;
    prepare_socket(fd);
    Hello hello{};
    uint64_t answer = ~token;
    const Clock::time_point until = std::min(deadline, Clock::now() + kOneAddress);
    const bool known = transfer(fd, &hello, sizeof hello, false, until) && hello.token == token && hello.rank > 0 &&
                       hello.rank < static_cast<int64_t>(apart.size()) && apart[static_cast<size_t>(hello.rank)] != 0;
    if (known && transfer(fd, &answer, sizeof answer, true, until))
      links_.push_back(make_link(fd, static_cast<int>(hello.rank), hosts.data() + hello.rank * kHostBytes));
    else
      ::close(fd);
  }
  ::close(listener);
  std::sort(links_.begin(), links_.end(), [](const auto& a, const auto& b) { return a->rank < b->rank; });
}

NodeLinks::~NodeLinks() {
  set_links({});
  send();
  for (const auto& link : links_)
    if (link->fd >= 0) ::close(link->fd);
}

void NodeLinks::send() {
  const RankNews news = own_news();
  for (const auto& link : links_) {
    if (link->fd < 0 || link->ended) continue;
    // A full buffer loses this one: the next says it all again.
    [[maybe_unused]] const ssize_t sent = ::send(link->fd, &news, sizeof news, MSG_NOSIGNAL | MSG_DONTWAIT);
  }
}

void NodeLinks::receive() {
  for (const auto& link : links_) {
    while (link->fd >= 0 && !link->ended) {
      RankNews news;
      // Sent whole, and always as long as this; what has not all come stays where it is.
      const ssize_t there = ::recv(link->fd, &news, sizeof news, MSG_DONTWAIT | MSG_PEEK);
      if (there < 0 && (errno == EAGAIN || errno == EINTR)) break;
      if (there > 0 && there < static_cast<ssize_t>(sizeof news)) break;
      if (there > 0) {
        [[maybe_unused]] const ssize_t taken = ::recv(link->fd, &news, sizeof news, MSG_DONTWAIT);
        link->heard = Clock::now();
        link->record.activity = news.activity;
        link->record.beats = news.beats;
        link->record.waits_for = news.waits_for;
        link->record.finished = news.finished;
        if (news.ended != 0) expect_end(news.ended - 1);
      } else if (there == 0 || errno == ECONNRESET || errno == EPIPE) {
        link->ended = true;
      } else {
        // The network's doing; whoever is silent from now on is late, not dead.
        ::close(link->fd);
        link->fd = -1;
      }
    }
  }
}

}  // namespace pq
