//! Both curves as one SVG.

use std::fmt::Write as _;

use crate::client::Curve;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 320.0;
const MARGIN: f64 = 50.0;

/// Share of answered calls over the seconds of the scenario.
pub(crate) fn svg(unprotected: &Curve, protected: &Curve, brown_out: (f64, f64)) -> String {
    let seconds = unprotected.arrivals.len() as f64;
    let x = |s: f64| MARGIN + s / seconds * (WIDTH - 2.0 * MARGIN);
    let y = |share: f64| HEIGHT - MARGIN - share * (HEIGHT - 2.0 * MARGIN);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>Share of calls answered, capacity a tenth between {} and {} s</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        brown_out.0, brown_out.1
    );
    let _ = writeln!(
        out,
        "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#eee\"/>",
        x(brown_out.0),
        y(1.0),
        x(brown_out.1) - x(brown_out.0),
        y(0.0) - y(1.0)
    );
    for percent in [0, 50, 100] {
        let at = y(f64::from(percent) / 100.0);
        let (left, right) = (x(0.0), x(seconds));
        let _ = writeln!(
            out,
            "<line x1=\"{left:.1}\" x2=\"{right:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ccc\"/>\
             <text x=\"8\" y=\"{:.1}\">{percent} %</text>",
            at + 4.0
        );
    }
    for second in (0..=seconds as u32).step_by(10) {
        let s = f64::from(second);
        let _ = writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\">{second} s</text>", x(s) - 8.0, HEIGHT - 28.0);
    }
    for (curve, color, label, line) in [
        (unprotected, "#c62828", "three attempts, backoff, jitter", 16.0),
        (protected, "#1565c0", "defaults + deadline + shed", 32.0),
    ] {
        let points: Vec<String> = (0..curve.arrivals.len())
            .map(|s| format!("{:.1},{:.1}", x(s as f64 + 0.5), y(curve.share(s..s + 1).min(1.0))))
            .collect();
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{color}\" stroke-width=\"2\" points=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{line}\" fill=\"{color}\">{label}</text>",
            points.join(" "),
            WIDTH - 260.0
        );
    }
    out.push_str("</svg>\n");
    out
}
