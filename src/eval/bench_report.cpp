// Writers of bench_report.h.
#include "eval/bench_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace pq {
namespace {

struct Derived {
  double median;
  double fastest;
  double slowest;
  double tokens_per_second;
  double gb_per_second;
  double read_fraction;
  double gmacs_per_second;
  double dot_fraction;
};

Derived derive(const BenchRow& row, const Roofs& roofs) {
  Derived d{};
  d.median = row.median_seconds();
  d.fastest = *std::min_element(row.seconds.begin(), row.seconds.end());
  d.slowest = *std::max_element(row.seconds.begin(), row.seconds.end());
  d.tokens_per_second = static_cast<double>(row.tokens) / d.median;
  d.gb_per_second = static_cast<double>(row.bytes) / d.median / 1e9;
  d.read_fraction = roofs.read_bytes_per_second > 0 ? d.gb_per_second * 1e9 / roofs.read_bytes_per_second : 0;
  d.gmacs_per_second = static_cast<double>(row.macs) / d.median / 1e9;
  d.dot_fraction = roofs.macs_per_second > 0 ? d.gmacs_per_second * 1e9 / roofs.macs_per_second : 0;
  return d;
}

std::string cell(double value, int digits) { return value > 0 ? fmt::format("{:.{}f}", value, digits) : std::string(); }

std::string markdown(const BenchReport& report, const std::string& title) {
  std::string out = title + "\n\n";
  out += fmt::format("Roofs of these ranks together: read {:.1f} GB/s, {} {:.0f} GMAC/s.\n\n",
                     report.roofs.read_bytes_per_second / 1e9, report.roofs.dot_instruction, report.roofs.macs_per_second / 1e9);
  out +=
      "| what | median ms | fastest | slowest | tok/s | GB/s | of read roof | GMAC/s | of dot roof "
      "|\n|---|---|---|---|---|---|---|---|---|\n";
  for (const BenchRow& row : report.rows) {
    const Derived d = derive(row, report.roofs);
    out += fmt::format("| {} | {:.4f} | {:.4f} | {:.4f} | {} | {} | {} | {} | {} |\n", row.name, d.median * 1e3, d.fastest * 1e3,
                       d.slowest * 1e3, cell(d.tokens_per_second, 2), cell(d.gb_per_second, 2), cell(d.read_fraction, 3),
                       cell(d.gmacs_per_second, 1), cell(d.dot_fraction, 3));
  }
  for (size_t rank = 0; rank < report.peak_rss_bytes.size(); ++rank) {
    out += fmt::format("\nrank {}: peak resident {:.3f} GB", rank, static_cast<double>(report.peak_rss_bytes[rank]) / 1e9);
    if (report.planned_bytes[rank] > 0)
      out += fmt::format(", planned {:.3f} GB", static_cast<double>(report.planned_bytes[rank]) / 1e9);
  }
  return out + "\n";
}

std::string csv(const BenchReport& report) {
  std::string out = "name,median_s,fastest_s,slowest_s,tokens_per_s,gb_per_s,read_fraction,gmacs_per_s,dot_fraction\n";
  for (const BenchRow& row : report.rows) {
    const Derived d = derive(row, report.roofs);
    out += fmt::format("\"{}\",{},{},{},{},{},{},{},{}\n", row.name, d.median, d.fastest, d.slowest, d.tokens_per_second,
                       d.gb_per_second, d.read_fraction, d.gmacs_per_second, d.dot_fraction);
  }
  return out;
}

std::string json(const BenchReport& report, const std::string& title) {
  nlohmann::ordered_json out;
  out["title"] = title;
  out["roofs"] = {{"read_bytes_per_second", report.roofs.read_bytes_per_second},
                  {"macs_per_second", report.roofs.macs_per_second},
                  {"dot_instruction", report.roofs.dot_instruction}};
  out["rows"] = nlohmann::ordered_json::array();
  for (const BenchRow& row : report.rows) {
    const Derived d = derive(row, report.roofs);
    out["rows"].push_back({{"name", row.name},
                           {"seconds", row.seconds},
                           {"median_seconds", d.median},
                           {"tokens", row.tokens},
                           {"bytes", row.bytes},
                           {"macs", row.macs},
                           {"tokens_per_second", d.tokens_per_second},
                           {"gb_per_second", d.gb_per_second},
                           {"read_fraction", d.read_fraction},
                           {"gmacs_per_second", d.gmacs_per_second},
                           {"dot_fraction", d.dot_fraction}});
  }
  out["peak_rss_bytes"] = report.peak_rss_bytes;
  out["planned_bytes"] = report.planned_bytes;
  return out.dump(2) + "\n";
}

}  // namespace

std::string format_report(const BenchReport& report, const std::string& title, ReportFormat format) {
  if (format == ReportFormat::json) return json(report, title);
  return format == ReportFormat::csv ? csv(report) : markdown(report, title);
}

}  // namespace pq
