//! Named labels of the stub's assembly are global and hidden: the functions of the section end up in different object
//! files as the compiler likes, and a plain label of one is undefined in the others – in some builds only.

/// The sources, without their comments.
fn sources() -> Vec<(String, String)> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/code");
    let files = std::fs::read_dir(dir).expect("the stub's code");
    files
        .map(|file| {
            let path = file.expect("a readable directory").path();
            let text = std::fs::read_to_string(&path).expect("a readable file");
            (path.display().to_string(), text)
        })
        .collect()
}

/// Names defined by lines of the form `"systrap_name:…`.
fn defined(text: &str) -> impl Iterator<Item = &str> {
    let after_quote = text.lines().filter_map(|line| line.trim_start().strip_prefix('"'));
    after_quote
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("systrap_"))
}

#[test]
fn named_labels_are_global_and_hidden() {
    let mut seen = 0;
    for (path, text) in sources() {
        for name in defined(&text) {
            seen += 1;
            // A label that only its own function refers to may stay local; the name then is nowhere else.
            let elsewhere = sources().iter().any(|(other, text)| *other != path && text.contains(name));
            for directive in [".globl", ".hidden"] {
                let there = text.contains(&format!("\"{directive} {name}\""));
                assert!(there || !elsewhere, "{path}: {name} needs a line \"{directive} {name}\"");
            }
        }
    }
    assert!(seen > 20, "the labels were found: {seen}");
}

/// The assembly of each function: from one `naked_asm!(` to the next.
fn functions(text: &str) -> impl Iterator<Item = &str> {
    text.split("naked_asm!(").skip(1)
}

#[test]
fn numbered_labels_stand_once_in_a_function() {
    // `jne 21f` goes to the next 21, wherever that was put: a second one in between changes where a branch leads.
    let mut seen = 0;
    for (path, text) in sources() {
        for function in functions(&text) {
            let lines = function.lines().filter_map(|line| line.trim_start().strip_prefix('"'));
            let labels = lines.filter_map(|line| line.split_once(':')).map(|(name, _)| name);
            let mut numbers: Vec<u32> = labels.filter_map(|name| name.parse().ok()).collect();
            seen += numbers.len();
            numbers.sort_unstable();
            if let Some(pair) = numbers.windows(2).find(|pair| pair[0] == pair[1]) {
                panic!("{path}: label {} stands twice in a function", pair[0]);
            }
        }
    }
    assert!(seen > 30, "the labels were found: {seen}");
}
