//! Shares as bars: in the terminal and as SVG.

use crate::cli::output::plain;

/// A node and its share before and after.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) before: f64,
    pub(super) after: f64,
    /// What its weight asks for after.
    pub(super) wanted: f64,
}

/// Most bars; of a larger fleet the largest and the smallest half.
const MOST: usize = 40;
/// Columns of the longest bar.
const COLUMNS: f64 = 50.0;

/// The bars that are shown, largest first, and how many are not.
fn shown(bars: &[Bar]) -> (Vec<&Bar>, usize) {
    let mut sorted: Vec<&Bar> = bars.iter().collect();
    sorted.sort_by(|a, b| b.after.total_cmp(&a.after).then_with(|| a.name.cmp(&b.name)));
    let hidden = sorted.len().saturating_sub(MOST);
    if hidden > 0 {
        sorted.drain(MOST / 2..MOST / 2 + hidden);
    }
    (sorted, hidden)
}

fn largest(bars: &[&Bar]) -> f64 {
    bars.iter().map(|b| b.after.max(b.before).max(b.wanted)).fold(f64::MIN_POSITIVE, f64::max)
}

/// For a terminal: `#` is the share, `|` what the weight asks for.
pub(super) fn text(bars: &[Bar]) -> String {
    let (shown, hidden) = shown(bars);
    let scale = COLUMNS / largest(&shown);
    let width = shown.iter().map(|b| b.name.chars().count()).max().unwrap_or(0).min(24);
    let mut out = String::new();
    for (at, bar) in shown.iter().enumerate() {
        if hidden > 0 && at == MOST / 2 {
            out += &format!("... {hidden} more in between\n");
        }
        let name: String = plain(&bar.name).chars().take(width).collect();
        // Scaled to at most COLUMNS.
        let (share, mark) = ((bar.after * scale).round() as usize, (bar.wanted * scale).round() as usize);
        let line: String = (0..=share.max(mark))
            .map(|c| {
                if c == mark {
                    '|'
                } else if c < share {
                    '#'
                } else {
                    ' '
                }
            })
            .collect();
        out += &format!("{name:width$}  {:>8}  {}\n", super::percent(bar.after), line.trim_end());
    }
    out
}

const ROW: usize = 18;
const LEFT: usize = 180;
const BARS: f64 = 480.0;

/// As a picture: grey before, blue after, a line for what the weight asks for.
pub(super) fn svg(title: &str, bars: &[Bar]) -> String {
    let (shown, hidden) = shown(bars);
    let scale = BARS / largest(&shown);
    let height = 40 + ROW * (shown.len() + usize::from(hidden > 0)) + 10;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\" role=\"img\" aria-label=\"{0}\">\n<title>{0}</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"22\" font-size=\"14\">{0}</text>\n",
        escape(title)
    );
    let mut y = 40;
    for (at, bar) in shown.iter().enumerate() {
        if hidden > 0 && at == MOST / 2 {
            out += &format!("<text x=\"10\" y=\"{}\">... {hidden} more in between</text>\n", y + 12);
            y += ROW;
        }
        let name: String = plain(&bar.name).chars().take(24).collect();
        out += &format!("<text x=\"10\" y=\"{}\">{}</text>\n", y + 12, escape(&name));
        for (share, color, top, tall) in [(bar.before, "#c8c8c8", 0, 14), (bar.after, "#2f6fb0", 3, 8)] {
            let width = share * scale;
            out += &format!(
                "<rect x=\"{LEFT}\" y=\"{}\" width=\"{width:.1}\" height=\"{tall}\" fill=\"{color}\"/>\n",
                y + top
            );
        }
        let x = LEFT as f64 + bar.wanted * scale;
        out += &format!("<path d=\"M{x:.1} {y}v14\" stroke=\"#b03030\" stroke-width=\"1.5\"/>\n");
        let end = LEFT as f64 + bar.after.max(bar.before).max(bar.wanted) * scale + 6.0;
        out += &format!("<text x=\"{end:.1}\" y=\"{}\">{}</text>\n", y + 12, super::percent(bar.after));
        y += ROW;
    }
    out + "</svg>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bars(n: u32) -> Vec<Bar> {
        let bar = |i: u32| {
            let share = f64::from(i + 1) / f64::from(n * (n + 1) / 2);
            Bar { name: format!("n{i}<&>"), before: share, after: share, wanted: 1.0 / f64::from(n) }
        };
        (0..n).map(bar).collect()
    }

    #[test]
    fn bars_are_sorted_bounded_and_marked() {
        let out = text(&bars(3));
        assert_eq!(
            out,
            "n2<&>    50.00%  #################################|################\n\
             n1<&>    33.33%  #################################|\n\
             n0<&>    16.67%  #################                |\n"
        );
        let many = text(&bars(100));
        assert_eq!(many.lines().count(), MOST + 1);
        assert!(many.contains("... 60 more in between"), "{many}");
        assert!(text(&[]).is_empty());
    }

    #[test]
    fn the_picture_is_well_formed_and_escapes_names() {
        let picture = svg("a & b", &bars(50));
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
        assert!(picture.contains("n49&lt;&amp;&gt;") && !picture.contains("<&>"), "{picture}");
        assert_eq!(picture.matches("<rect").count(), 1 + 2 * MOST);
        assert!(!picture.contains("NaN") && !picture.contains("inf"));
    }
}
