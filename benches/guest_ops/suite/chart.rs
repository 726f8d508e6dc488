//! The chart: multiples of native on a logarithmic scale, with the goals marked.

use std::path::Path;

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::Mode;
use super::figures::{Line, Report, Verdict};
use super::rows::Yardstick;
use super::table::value;

const WIDTH: u32 = 1100;
const ROW_HEIGHT: u32 = 30;
const LABELS: u32 = 250;
const FRAME: u32 = 110;
/// The scale, widened if something lies outside.
const SCALE: (f64, f64) = (0.03, 100.0);

const LAZY: RGBColor = RGBColor(33, 102, 172);
const OFF: RGBColor = RGBColor(170, 190, 210);
const GOAL: RGBColor = RGBColor(27, 120, 55);
const MISSED: RGBColor = RGBColor(178, 24, 43);

type Error = Box<dyn std::error::Error>;
type Plot<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<LogCoord<f64>, RangedCoordf64>>;

impl Report {
    /// Writes an SVG file. Rows that are no multiples of native are in the line below the chart.
    pub fn chart(&self, path: &Path) -> Result<(), Error> {
        let is_ratio = |line: &&Line| line.yardstick() == Yardstick::TimesNative;
        let (ratios, others): (Vec<&Line>, Vec<&Line>) = self.lines.iter().partition(is_ratio);
        let rows = u32::try_from(ratios.len())?;
        let size = (WIDTH, FRAME + ROW_HEIGHT * rows.max(1));
        let root = SVGBackend::new(path, size).into_drawing_area();
        root.fill(&WHITE)?;
        let (least, most) = range(&ratios);
        let height = f64::from(rows.max(1));
        let caption = "Guest operations, multiples of native (log scale)";
        let mut plot: Plot = ChartBuilder::on(&root)
            .caption(caption, ("sans-serif", 20))
            .margin(12)
            .margin_right(90)
            .margin_bottom(36)
            .x_label_area_size(28)
            .y_label_area_size(LABELS)
            .build_cartesian_2d((least..most).log_scale(), height..0.0)?;
        plot.configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .light_line_style(RGBColor(240, 240, 240))
            .x_label_formatter(&|times| format!("{times} x"))
            .draw()?;
        for (index, line) in ratios.iter().enumerate() {
            draw_row(&mut plot, line, index as f64, (least, most))?;
        }
        let native = [(1.0, 0.0), (1.0, height)];
        plot.draw_series(std::iter::once(PathElement::new(native, BLACK.stroke_width(1))))?;
        let notes: Vec<String> = others.iter().map(|line| note(line)).collect();
        let legend = "dark: lazy; light: off; green or red bar: goal, met or missed by lazy.";
        let text = format!("{legend} {}", notes.join("; "));
        let at = (12, i32::try_from(size.1)? - 24);
        root.draw(&Text::new(text, at, ("sans-serif", 13).into_font().color(&BLACK)))?;
        root.present()?;
        Ok(())
    }
}

fn range(lines: &[&Line]) -> (f64, f64) {
    let shown = lines.iter().flat_map(|line| {
        let ratios = [Mode::Lazy, Mode::Off].map(|mode| line.compared(mode, Yardstick::TimesNative));
        ratios.into_iter().flatten().chain(line.row.goal.map(|goal| goal.most))
    });
    // A figure of zero has no place on a logarithmic scale.
    let shown = shown.filter(|value| value.is_finite() && *value > 0.0);
    shown.fold(SCALE, |(least, most), value| (least.min(value / 1.5), most.max(value * 1.5)))
}

fn draw_row(plot: &mut Plot, line: &Line, top: f64, (least, _): (f64, f64)) -> Result<(), Error> {
    let verdict = line.verdict();
    let accent = if matches!(verdict, Verdict::Missed | Verdict::Failed) { MISSED } else { GOAL };
    for (mode, colour, from, to) in [(Mode::Lazy, LAZY, 0.12, 0.5), (Mode::Off, OFF, 0.5, 0.88)] {
        let middle = top + f64::midpoint(from, to);
        let Some(times) = line.compared(mode, Yardstick::TimesNative).filter(|times| *times > 0.0) else {
            let text = format!("{}: failed", mode.name());
            draw_text(plot, text, (least, middle), HPos::Left, 11, MISSED)?;
            continue;
        };
        let corners = [(times.min(1.0), top + from), (times.max(1.0), top + to)];
        plot.draw_series(std::iter::once(Rectangle::new(corners, colour.filled())))?;
        draw_text(plot, format!(" {}", value(line, times)), (times.max(1.0), middle), HPos::Left, 11, BLACK)?;
    }
    if let Some(goal) = line.row.goal {
        let mark = [(goal.most, top + 0.04), (goal.most, top + 0.96)];
        plot.draw_series(std::iter::once(PathElement::new(mark, accent.stroke_width(3))))?;
    }
    let colour = if verdict == Verdict::Failed { MISSED } else { BLACK };
    draw_text(plot, format!("{}  ", line.row.what), (least, top + 0.5), HPos::Right, 13, colour)
}

fn draw_text(
    plot: &Plot,
    text: String,
    at: (f64, f64),
    side: HPos,
    size: i32,
    colour: RGBColor,
) -> Result<(), Error> {
    let style = ("sans-serif", size).into_font().color(&colour).pos(Pos::new(side, VPos::Center));
    let pixel = plot.backend_coord(&at);
    // Labels lie beside the plotting area, which would cut them off.
    plot.plotting_area().strip_coord_spec().draw(&Text::new(text, pixel, style))?;
    Ok(())
}

fn note(line: &Line) -> String {
    let lazy = line.compared(Mode::Lazy, line.yardstick());
    let shown = lazy.map_or("failed".to_owned(), |lazy| value(line, lazy));
    let goal = line.row.goal.map_or(String::new(), |goal| format!(" (goal {})", value(line, goal.most)));
    format!("{}: {shown}{goal}", line.row.what)
}
