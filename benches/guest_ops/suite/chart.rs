//! The chart: multiples of native on a logarithmic scale, with the goals marked.

use std::path::Path;

use plotters::coord::Shift;
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
const FRAME: u32 = 90;
/// Pixels between a text and what it belongs to.
const GAP: i32 = 5;
const NOTE_HEIGHT: u32 = 18;
const LEGEND: &str =
    "Dark: patching lazy. Light: patching off. Bar across: the goal, green if lazy meets it. Circle: gVisor.";
/// The scale, widened if something lies outside.
const SCALE: (f64, f64) = (0.03, 100.0);

const LAZY: RGBColor = RGBColor(33, 102, 172);
const OFF: RGBColor = RGBColor(170, 190, 210);
const GOAL: RGBColor = RGBColor(27, 120, 55);
const MISSED: RGBColor = RGBColor(178, 24, 43);

type Error = Box<dyn std::error::Error>;
type Root<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Plot<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<LogCoord<f64>, RangedCoordf64>>;

impl Report {
    /// Writes an SVG file. Rows that are no multiples of native are in the lines below the chart.
    pub fn chart(&self, path: &Path) -> Result<(), Error> {
        let is_ratio = |line: &&Line| line.yardstick() == Yardstick::TimesNative;
        let (ratios, others): (Vec<&Line>, Vec<&Line>) = self.lines.iter().partition(is_ratio);
        let mut notes = vec![LEGEND.to_owned()];
        notes.extend(others.into_iter().map(note));
        let rows = u32::try_from(ratios.len().max(1))?;
        let foot = NOTE_HEIGHT * u32::try_from(notes.len())?;
        let size = (WIDTH, FRAME + ROW_HEIGHT * rows + foot);
        let root = SVGBackend::new(path, size).into_drawing_area();
        root.fill(&WHITE)?;
        let (least, most) = range(&ratios);
        let height = f64::from(rows);
        let mut plot: Plot = ChartBuilder::on(&root)
            .caption("Guest operations as multiples of native", ("sans-serif", 20))
            .margin(12)
            .margin_right(60)
            .margin_bottom(foot + 12)
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
            draw_row(&root, &mut plot, line, index as f64, least)?;
        }
        let native = [(1.0, 0.0), (1.0, height)];
        plot.draw_series(std::iter::once(PathElement::new(native, BLACK.stroke_width(1))))?;
        let style = ("sans-serif", 13).into_font().color(&BLACK);
        for (text, index) in notes.into_iter().zip(0..) {
            let at = (12, i32::try_from(size.1 - foot + index * NOTE_HEIGHT)?);
            root.draw(&Text::new(text, at, style.clone()))?;
        }
        root.present()?;
        Ok(())
    }
}

fn range(lines: &[&Line]) -> (f64, f64) {
    let shown = lines.iter().flat_map(|line| {
        let ratios = [Mode::Lazy, Mode::Off].map(|mode| line.compared(mode, Yardstick::TimesNative));
        let goal = line.row.goal.into_iter().flat_map(|goal| [Some(goal.most), goal.gvisor]);
        ratios.into_iter().chain(goal).flatten()
    });
    // A figure of zero has no place on a logarithmic scale.
    let shown = shown.filter(|value| value.is_finite() && *value > 0.0);
    shown.fold(SCALE, |(least, most), value| (least.min(value / 1.5), most.max(value * 1.5)))
}

fn draw_row(root: &Root, plot: &mut Plot, line: &Line, top: f64, least: f64) -> Result<(), Error> {
    let verdict = line.verdict();
    let place = |plot: &Plot, at, side| {
        let (x, y) = plot.backend_coord(&at);
        let gap = if matches!(side, HPos::Left) { GAP } else { -GAP };
        ((x + gap, y), Pos::new(side, VPos::Center))
    };
    for (mode, colour, from, to) in [(Mode::Lazy, LAZY, 0.12, 0.5), (Mode::Off, OFF, 0.5, 0.88)] {
        let times = line.compared(mode, Yardstick::TimesNative).filter(|times| *times > 0.0);
        if let Some(times) = times {
            let corners = [(times.min(1.0), top + from), (times.max(1.0), top + to)];
            plot.draw_series(std::iter::once(Rectangle::new(corners, colour.filled())))?;
        }
        let (text, colour) = match times {
            Some(times) => (value(line, times), BLACK),
            None => (format!("{}: failed", mode.name()), MISSED),
        };
        let end = (times.unwrap_or(1.0).max(1.0), top + f64::midpoint(from, to));
        draw_text(root, text, place(plot, end, HPos::Left), 11, colour)?;
    }
    if let Some(goal) = line.row.goal {
        let accent = if verdict == Verdict::Met { GOAL } else { MISSED };
        let mark = [(goal.most, top + 0.04), (goal.most, top + 0.96)];
        plot.draw_series(std::iter::once(PathElement::new(mark, accent.stroke_width(3))))?;
        let other = goal.gvisor.map(|times| Circle::new((times, top + 0.5), 4, BLACK.stroke_width(1)));
        plot.draw_series(other)?;
    }
    let colour = if verdict == Verdict::Failed { MISSED } else { BLACK };
    draw_text(root, line.row.what.to_owned(), place(plot, (least, top + 0.5), HPos::Right), 13, colour)
}

/// Text at a pixel of the whole picture: labels lie beside the plotting area too.
fn draw_text(
    root: &Root,
    text: String,
    (pixel, anchor): ((i32, i32), Pos),
    size: i32,
    colour: RGBColor,
) -> Result<(), Error> {
    let style = ("sans-serif", size).into_font().color(&colour).pos(anchor);
    root.draw(&Text::new(text, pixel, style))?;
    Ok(())
}

fn note(line: &Line) -> String {
    let shown = |mode| {
        let compared = line.compared(mode, line.yardstick());
        compared.map_or("failed".to_owned(), |compared| value(line, compared))
    };
    let mut text = format!("{}: lazy {}, off {}", line.row.what, shown(Mode::Lazy), shown(Mode::Off));
    if let Some(goal) = line.row.goal {
        text.push_str(&format!("; goal {}", value(line, goal.most)));
        if let Some(other) = goal.gvisor {
            text.push_str(&format!("; gVisor {}", value(line, other)));
        }
    }
    text
}
