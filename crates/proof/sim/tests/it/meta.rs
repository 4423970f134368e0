//! PV-1, PV-8, PV-10: the simulator itself.
