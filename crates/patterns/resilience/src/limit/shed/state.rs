//! Who is refused between twice and three times the limit.

use crate::Priority;

/// The chance in `[0, 1]` that a call is refused.
///
/// `load` counts calls in service and waiting, the new one not included. Nothing is refused below `2 * limit`,
/// everything from `3 * limit`. In between the classes give way one after the other, least important first:
/// each over an equal part of the range, with a rising chance. Within the class that is giving way, a
/// tenant's chance is scaled by its share of the load against a fair share, so the heaviest goes first.
pub(crate) fn chance(load: u32, limit: u32, priority: Priority, tenant: u32, tenants: u32) -> f64 {
    let (load, limit) = (f64::from(load), f64::from(limit.max(1)));
    let over = load / limit - 2.0;
    if over < 0.0 {
        return 0.0;
    }
    if over >= 1.0 {
        return 1.0;
    }
    let classes = Priority::CLASSES as f64;
    let pressure = (over * classes - priority.index() as f64).clamp(0.0, 1.0);
    if pressure >= 1.0 {
        return 1.0;
    }
    let fair = load / f64::from(tenants.max(1));
    (pressure * f64::from(tenant) / fair).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::chance;
    use crate::Priority;

    #[track_caller]
    fn check(load: u32, priority: Priority, tenant: u32, tenants: u32, expected: f64) {
        let p = chance(load, 100, priority, tenant, tenants);
        assert!((p - expected).abs() < 1e-9, "{load} {priority:?} {tenant}/{tenants}: {p}");
    }

    #[test]
    fn by_load_class_and_share() {
        check(199, Priority::Low, 199, 1, 0.0);
        check(200, Priority::Low, 200, 1, 0.0);
        // An eighth into the range: the lowest class is halfway out, the next untouched.
        check(212, Priority::Low, 212, 1, 0.48);
        check(212, Priority::Normal, 212, 1, 0.0);
        // The heaviest tenant of ten: five times the fair share; a light one: half of it.
        check(210, Priority::Low, 105, 10, 1.0);
        check(210, Priority::Low, 10, 10, 0.4 * 10.0 / 21.0);
        check(225, Priority::Low, 1, 10, 1.0);
        check(275, Priority::High, 1, 10, 1.0);
        check(275, Priority::Critical, 275, 1, 0.0);
        check(300, Priority::Critical, 0, 10, 1.0);
    }
}
