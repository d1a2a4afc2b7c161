//! The Rust of the README and of `docs/burn.md`, as it stands there, for `src/snippets.rs` to include.

use std::path::Path;
use std::{env, fs};

fn main() {
    let out = env::var("OUT_DIR").expect("cargo sets it");
    for (name, page) in [("readme", "../README.md"), ("burn", "../docs/burn.md")] {
        println!("cargo::rerun-if-changed={page}");
        let text = fs::read_to_string(page).expect(page);
        let blocks = text.split("```rust\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
        let mut count = 0;
        for (index, block) in blocks.enumerate() {
            // A block is an expression, as `include!` wants it.
            let file = Path::new(&out).join(format!("{name}_{index}.rs"));
            fs::write(file, format!("{{\n{block}\n}}")).expect("the build folder can be written");
            count = index + 1;
        }
        println!("cargo::rustc-env=SNIPPETS_{}={count}", name.to_uppercase());
    }
}
