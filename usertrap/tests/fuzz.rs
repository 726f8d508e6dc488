//! A short, repeatable run of the fuzz targets (`fuzz/`): their corpus, and inputs made from it. `USERTRAP_FUZZ=100` makes
//! it a hundred times as long.

mod support;

use std::path::{Path, PathBuf};

use support::fuzz::{Came, HEADER_LEN, elf, planner};
use support::rng::Rng;
use support::windows::{SHAPES, generate};

/// Inputs besides the corpus itself.
const PLANNER_INPUTS: usize = 16_000;
const ELF_INPUTS: usize = 4_000;

/// Bytes that mean something to the planner.
const SPICE: &[&[u8]] = &[
    &[0x0f, 0x05],
    &[0xb8, 1, 0, 0, 0],
    &[0xe9],
    &[0xeb],
    &[0x74],
    &[0xc3],
    &[0xcc],
    &[0x90],
    &[0xe8],
    &[0x0f, 0x1f, 0x44, 0, 0],
    &[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
    &[0xf3, 0x0f, 0x1e, 0xfa],
    &[0xf0],
    &[0x48],
    &[0x67],
    &[0xe2],
    &[0x06],
    &[0x62],
    &[0xc4],
    &[0xc5],
    &[0x48, 0x8b, 0x05],
    &[0xff, 0x25],
];

/// So many inputs, or as many more as the environment asks for.
fn inputs(usual: usize) -> usize {
    let times = std::env::var("USERTRAP_FUZZ").map_or(1, |times| times.parse().expect("a number of times"));
    usual * times
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The files of a directory with that extension, if one is given, by name.
fn files(directory: &str, extension: Option<&str>) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(root().join(directory)).expect("the corpus");
    let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("readable").path()).collect();
    paths.retain(|path| extension.is_none_or(|wanted| path.extension().is_some_and(|e| e == wanted)));
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("readable")).collect()
}

/// Changes an input a little, at `first` or behind, where `last` is not passed.
fn mutate(rng: &mut Rng, input: &mut Vec<u8>, first: usize, last: usize) {
    for _ in 0..1 + rng.below(6) {
        let end = input.len().min(last);
        if end <= first {
            return input.push(rng.next() as u8);
        }
        let at = first + rng.below(end - first);
        match rng.below(7) {
            0 => input[at] = rng.next() as u8,
            1 => input[at] ^= 1 << rng.below(8),
            2 => input[at] = rng.pick(&[0, 1, 0x7f, 0x80, 0xff]),
            3 => drop(input.splice(at..at, rng.pick(SPICE).iter().copied())),
            4 => drop(input.splice(at..(at + rng.below(8)).min(input.len()), [])),
            5 => {
                let piece = input[at..(at + rng.below(32)).min(input.len())].to_vec();
                drop(input.splice(at..at, piece));
            }
            _ if rng.below(8) == 0 => input.truncate(at),
            _ => {
                let spice = rng.pick(SPICE);
                input.iter_mut().skip(at).zip(spice).for_each(|(byte, new)| *byte = *new);
            }
        }
    }
}

/// A header of hints as they come, mostly near the code.
fn header(rng: &mut Rng, code_len: usize) -> Vec<u8> {
    let bases = [0, 0x1000, 0x40_0000, 0x40_0000, u64::MAX - 300, 1 << 46, (1 << 47) - 200];
    let mut header = rng.pick(&bases).to_le_bytes().to_vec();
    header.push(rng.next() as u8);
    for _ in 0..6 {
        let near = rng.below(code_len + 100) as i16 - 50;
        header.extend(if rng.below(8) == 0 { rng.next() as i16 } else { near }.to_le_bytes());
    }
    header.resize(HEADER_LEN, rng.next() as u8);
    header
}

fn report(what: &str, inputs: usize, came: impl Fn(Came) -> usize, all: &[Came], began: std::time::Instant) {
    let planned: usize = all.iter().map(|c| came(*c)).sum();
    let refused: usize = all.iter().map(|c| c.refused).sum();
    println!("{what}: {inputs} inputs, {planned} plans, {refused} refusals in {:.1?}", began.elapsed());
}

#[test]
fn the_planner_bears_any_bytes() {
    let began = std::time::Instant::now();
    let mut rng = Rng::new(1);
    let corpus = files("fuzz/corpus/planner", None);
    assert!(corpus.len() >= 20, "the corpus is committed");
    let mut all: Vec<Came> = corpus.iter().map(|input| planner(input)).collect();
    for round in 0..inputs(PLANNER_INPUTS) {
        let mut input = match round % 4 {
            // Nothing that any compiler would write.
            0 => {
                let mut noise = header(&mut rng, 200);
                for _ in 0..rng.below(150) {
                    match rng.below(3) {
                        0 => noise.push(rng.next() as u8),
                        1 => noise.extend(rng.pick(SPICE)),
                        _ => noise.extend([0x48, 0x89, 0xc0 | rng.next() as u8]),
                    }
                }
                noise
            }
            1 => corpus[rng.below(corpus.len())].clone(),
            _ => {
                let code = generate(rng.pick(SHAPES), &mut rng).code;
                [header(&mut rng, code.len()), code].concat()
            }
        };
        if round % 8 != 3 {
            let first = if rng.below(4) == 0 { 8 } else { HEADER_LEN };
            mutate(&mut rng, &mut input, first, usize::MAX);
        }
        all.push(planner(&input));
    }
    report("planner", all.len(), |c| c.planned, &all, began);
    let count = |pick: fn(&Came) -> usize| all.iter().map(pick).sum::<usize>();
    assert!(count(|c| c.planned) > 2_000 && count(|c| c.refused) > 2_000, "the inputs reach too little");
}

#[test]
fn the_reading_of_elf_files_bears_any_bytes() {
    let began = std::time::Instant::now();
    let mut rng = Rng::new(2);
    let mut corpus = files("fuzz/corpus/elf", None);
    assert!(corpus.len() >= 8, "the corpus is committed");
    corpus.extend(files("fixtures/sites", Some("elf")));
    let mut all: Vec<Came> = corpus.iter().map(|input| elf(input)).collect();
    for round in 0..inputs(ELF_INPUTS) {
        let mut input = corpus[rng.below(corpus.len())].clone();
        // Headers, where it hurts most; the tables at the end; anywhere.
        let (first, last) = match round % 3 {
            0 => (16, 64 + 4 * 56),
            1 => (input.len().saturating_sub(1024), usize::MAX),
            _ => (0, usize::MAX),
        };
        if round % 2 == 0 {
            // Lengths and places stay where they are.
            for _ in 0..1 + rng.below(8) {
                let end = input.len().min(last);
                let at = first.min(end - 1) + rng.below(end - first.min(end - 1));
                input[at] =
                    if rng.below(2) == 0 { rng.next() as u8 } else { rng.pick(&[0, 0xff, 0x7f, 0x80]) };
            }
        } else {
            mutate(&mut rng, &mut input, first, last);
        }
        all.push(elf(&input));
    }
    report("elf", all.len(), |c| c.planned, &all, began);
    let count = |pick: fn(&Came) -> usize| all.iter().map(pick).sum::<usize>();
    assert!(count(|c| c.planned) > 1_000 && count(|c| c.refused) > 50, "the inputs reach too little");
}

/// The planner's corpus has one window of each shape, and the false matches that other patchers fell for.
/// `INSTA_UPDATE=always` writes it.
#[test]
fn the_planners_corpus_has_a_window_of_each_shape() {
    let writes = std::env::var("INSTA_UPDATE").is_ok_and(|value| value == "always");
    let mut rng = Rng::new(3);
    for shape in SHAPES {
        let window = generate(*shape, &mut rng);
        let mut input = 0x40_0000_u64.to_le_bytes().to_vec();
        input.push(1 | 2 | 4 | 16);
        for offset in [window.function.0, window.function.1, window.site, window.site, 0, 0] {
            input.extend((offset as i16).to_le_bytes());
        }
        input.resize(HEADER_LEN, 0);
        input.extend(window.code);
        let path = root().join("fuzz/corpus/planner").join(format!("{shape:?}"));
        if writes {
            std::fs::write(&path, &input).expect("written");
        }
        let committed = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(committed == input, "{} is not what the generator makes of {shape:?}", path.display());
    }
}
