//! The roofline: what a product reaches over what its memory traffic allows.
//!
//! Source: Williams, Waterman and Patterson, *Roofline* (2009).

use plotters::prelude::*;
use std::path::Path;

/// A product in the plot.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// What it is.
    pub name: String,
    /// Floating-point operations per byte of the weight.
    pub intensity: f64,
    /// Floating-point operations a second.
    pub rate: f64,
    /// Whether it is ours.
    pub is_ours: bool,
}

/// Writes a plot of `points` under the roof of `bandwidth` bytes a second, as SVG.
///
/// # Errors
/// If the file cannot be written.
pub fn draw(path: &Path, title: &str, bandwidth: f64, points: &[Point]) -> anyhow::Result<()> {
    let bounds = |values: &dyn Fn(&Point) -> f64| {
        let (low, high) = points.iter().map(values).fold((f64::MAX, 0f64), |(l, h), v| (l.min(v), h.max(v)));
        (low / 2.0, high * 3.0)
    };
    let (x, y) = (bounds(&|p| p.intensity), bounds(&|p| p.rate / 1e9));
    let area = SVGBackend::new(path, (960, 640)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(72)
        .build_cartesian_2d((x.0..x.1).log_scale(), (y.0..y.1).log_scale())?;
    chart.configure_mesh().x_desc("operations per byte of the weight").y_desc("10⁹ operations a second").draw()?;
    let ends = [x.0, (y.1 * 1e9 / bandwidth).min(x.1)];
    chart
        .draw_series(LineSeries::new(ends.map(|intensity| (intensity, intensity * bandwidth / 1e9)), &BLACK))?
        .label("memory read once")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], BLACK));
    for (is_ours, label, colour) in [(true, "PIXEL", RED), (false, "others", BLUE)] {
        let points = points.iter().filter(|point| point.is_ours == is_ours);
        chart
            .draw_series(points.map(|point| {
                let text = Text::new(point.name.clone(), (8, -6), ("sans-serif", 12).into_font());
                EmptyElement::at((point.intensity, point.rate / 1e9)) + Circle::new((0, 0), 4, colour.filled()) + text
            }))?
            .label(label)
            .legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.filled()));
    }
    chart.configure_series_labels().border_style(BLACK).position(SeriesLabelPosition::LowerRight).draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_names_its_points() {
        let path = tempfile::tempdir().unwrap().keep().join("roofline.svg");
        let point = |name: &str, is_ours| Point { name: name.into(), intensity: 8.0, rate: 2e11, is_ours };
        draw(&path, "title", 25e9, &[point("additive:2", true), point("dense", false)]).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        assert!(["title", "additive:2", "dense", "PIXEL"].iter().all(|text| svg.contains(text)), "{svg}");
    }
}
