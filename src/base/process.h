// What the kernel says of this process and this machine's memory.
#pragma once

#include <cstdint>
#include <string>

namespace pq {

// A line "Name:   123 kB" of a file of /proc, in bytes; 0 when there is none.
int64_t proc_bytes(const std::string& path, const std::string& name);

// Most bytes this process held in memory since it began, or since try_reset_peak_resident.
int64_t peak_resident_bytes();

// Lets the peak begin anew at what is held now. False where the kernel does not allow it.
bool try_reset_peak_resident();

}  // namespace pq
