// Tables of bench_report.h.
#include "eval/bench_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace pq {
namespace {

// One column of every format: the value of a row, 0 where it means nothing.
struct Column {
  const char* heading;  // Markdown
  const char* key;      // CSV and JSON
  int digits;
  double (*value)(const BenchRow& row, const BenchReport& report);
};

double per_second(int64_t work, const BenchRow& row) { return static_cast<double>(work) / row.median_seconds(); }

constexpr Column kColumns[] = {
    {"median ms", "median_ms", 4, [](const BenchRow& row, const BenchReport&) { return row.median_seconds() * 1e3; }},
    {"fastest", "fastest_ms", 4,
     [](const BenchRow& row, const BenchReport&) { return *std::min_element(row.seconds.begin(), row.seconds.end()) * 1e3; }},
    {"slowest", "slowest_ms", 4,
     [](const BenchRow& row, const BenchReport&) { return *std::max_element(row.seconds.begin(), row.seconds.end()) * 1e3; }},
    {"tok/s", "tokens_per_second", 2, [](const BenchRow& row, const BenchReport&) { return per_second(row.tokens, row); }},
    {"GB/s", "gb_per_second", 2, [](const BenchRow& row, const BenchReport&) { return per_second(row.bytes, row) / 1e9; }},
    {"GB/s a rank", "gb_per_second_per_rank", 2,
     [](const BenchRow& row, const BenchReport& report) { return per_second(row.bytes, row) / 1e9 / report.ranks; }},
    {"of read roof", "read_fraction", 3, [](const BenchRow& row, const BenchReport&) { return row.read_fraction(); }},
    {"GMAC/s", "gmacs_per_second", 1, [](const BenchRow& row, const BenchReport&) { return per_second(row.macs, row) / 1e9; }},
    {"of dot roof", "dot_fraction", 3, [](const BenchRow& row, const BenchReport&) { return row.dot_fraction(); }},
    {"M weights/s a thread", "mweights_per_second_per_thread", 1,
     [](const BenchRow& row, const BenchReport& report) {
       return per_second(row.weights, row) / 1e6 / (report.ranks * report.threads);
     }},
    {"of the step", "share", 3, [](const BenchRow& row, const BenchReport&) { return row.share; }},
    {"relative error", "relative_error", 6, [](const BenchRow& row, const BenchReport&) { return row.relative_error; }},
};

std::string markdown(const BenchReport& report, const std::string& title) {
  std::string out = title + "\n\n";
  const Roofs roofs = report.roofs();
  const std::string workers =
      roofs.device ? "a device each" : fmt::format("{} thread{} each", report.threads, report.threads == 1 ? "" : "s");
  out += fmt::format("Roofs of these ranks together, {}: {} {:.1f} GB/s ({}), {} {:.0f} GMAC/s.\n", workers,
                     roofs.device ? "moved" : "read", roofs.read_bytes_per_second / 1e9, roofs.read_pattern, roofs.dot_instruction,
                     roofs.macs_per_second / 1e9);
  out += fmt::format("Before and after the measurements: {:.1f} and {:.1f} GB/s, {:.0f} and {:.0f} GMAC/s.\n",
                     report.before.read_bytes_per_second / 1e9, report.after.read_bytes_per_second / 1e9,
                     report.before.macs_per_second / 1e9, report.after.macs_per_second / 1e9);
  if (report.metered_bytes > 0) out += "Fractions are of what the machine gave around each repetition; the median counts.\n";
  for (const std::string& remark : report.remarks) out += remark + ".\n";
  if (report.weights > 0) {
    out += fmt::format("Weights: {:.1f} M, {:.3f} bits each over all tensors.\n", static_cast<double>(report.weights) / 1e6,
                       8.0 * static_cast<double>(report.weight_bytes) / static_cast<double>(report.weights));
  }
  std::vector<Column> shown;
  for (const Column& column : kColumns) {
    const auto means = [&](const BenchRow& row) { return column.value(row, report) > 0; };
    if (std::any_of(report.rows.begin(), report.rows.end(), means)) shown.push_back(column);
  }
  out += "\n| what |";
  for (const Column& column : shown) out += fmt::format(" {} |", column.heading);
  out += "\n|---|";
  for (size_t i = 0; i < shown.size(); ++i) out += "---|";
  for (const BenchRow& row : report.rows) {
    out += fmt::format("\n| {} |", row.name);
    for (const Column& column : shown) {
      const double value = column.value(row, report);
      out += value > 0 ? fmt::format(" {:.{}f} |", value, column.digits) : " |";
    }
  }
  out += "\n";
  for (size_t rank = 0; rank < report.peak_rss_bytes.size(); ++rank) {
    const auto peak = static_cast<double>(report.peak_rss_bytes[rank]);
    const auto planned = static_cast<double>(report.planned_bytes[rank]);
    const DeviceBytes device = rank < report.device_bytes.size() ? report.device_bytes[rank] : DeviceBytes{};
    if (device.buffers > 0) {
      out += fmt::format("\nrank {}: device buffers {:.3f} GB at most, {:.3f} GB of the device taken", rank,
                         static_cast<double>(device.buffers) / 1e9, static_cast<double>(device.taken) / 1e9);
      if (planned > 0) out += fmt::format(", planned {:.3f} GB", planned / 1e9);
      continue;
    }
    out += fmt::format("\nrank {}: peak resident {:.3f} GB", rank, peak / 1e9);
    if (planned > 0) out += fmt::format(", planned {:.3f} GB, ratio {:.3f}", planned / 1e9, peak / planned);
  }
  return out + "\n";
}

std::string csv(const BenchReport& report) {
  std::string out = "name";
  for (const Column& column : kColumns) out += fmt::format(",{}", column.key);
  for (const BenchRow& row : report.rows) {
    out += fmt::format("\n\"{}\"", row.name);
    for (const Column& column : kColumns) out += fmt::format(",{}", column.value(row, report));
  }
  return out + "\n";
}

nlohmann::ordered_json to_json(const Roofs& roofs) {
  return {{"read_bytes_per_second", roofs.read_bytes_per_second},
          {"read_pattern", roofs.read_pattern},
          {"macs_per_second", roofs.macs_per_second},
          {"dot_instruction", roofs.dot_instruction},
          {"device", roofs.device}};
}

std::string json(const BenchReport& report, const std::string& title) {
  nlohmann::ordered_json out;
  out["title"] = title;
  out["ranks"] = report.ranks;
  out["threads"] = report.threads;
  out["weights"] = report.weights;
  out["weight_bytes"] = report.weight_bytes;
  out["roofs"] = to_json(report.roofs());
  out["roofs_before"] = to_json(report.before);
  out["roofs_after"] = to_json(report.after);
  out["rows"] = nlohmann::ordered_json::array();
  for (const BenchRow& row : report.rows) {
    nlohmann::ordered_json entry = {{"name", row.name},     {"seconds", row.seconds}, {"read", row.read}, {"dot", row.dot},
                                    {"tokens", row.tokens}, {"bytes", row.bytes},     {"macs", row.macs}, {"weights", row.weights}};
    for (const Column& column : kColumns) entry[column.key] = column.value(row, report);
    out["rows"].push_back(entry);
  }
  out["peak_rss_bytes"] = report.peak_rss_bytes;
  out["planned_bytes"] = report.planned_bytes;
  out["device_bytes"] = nlohmann::ordered_json::array();
  for (const DeviceBytes& rank : report.device_bytes)
    out["device_bytes"].push_back({{"buffers", rank.buffers}, {"taken", rank.taken}});
  out["remarks"] = report.remarks;
  return out.dump(2) + "\n";
}

}  // namespace

std::string format_report(const BenchReport& report, const std::string& title, ReportFormat format) {
  if (format == ReportFormat::json) return json(report, title);
  return format == ReportFormat::csv ? csv(report) : markdown(report, title);
}

}  // namespace pq
