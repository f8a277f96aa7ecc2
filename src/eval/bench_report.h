// A BenchReport as Markdown, CSV or JSON: numbers are computed once, here, from the same rows.
#pragma once

#include <string>

#include "eval/bench.h"

namespace pq {

enum class ReportFormat : int { markdown, csv, json };

// `title` names the model, ranks, backend. Columns: median time and spread, tokens/s, GB/s and its fraction of the read roof, int8
// multiply-adds/s and their fraction of the dot roof; empty where they mean nothing.
std::string format_report(const BenchReport& report, const std::string& title, ReportFormat format);

}  // namespace pq
