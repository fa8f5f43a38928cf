//! One watchable key-value space, with compare-and-swap, leases and election.
