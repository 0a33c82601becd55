//! A native simulator.
