//! Holds the module graph of ARCHITECTURE.md (to be filled).
