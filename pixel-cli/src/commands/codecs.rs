//! `pixel codecs`.

use crate::output::table;
use anyhow::Result;
use pixel_core::codec::FAMILIES;
use std::process::ExitCode;

/// Lists the codecs.
pub(crate) fn run() -> Result<ExitCode> {
    let mut table = table(&["codec", "bits per weight", "rotates", "what it is"], 4);
    for family in FAMILIES {
        let rates = family.rates().iter().map(f64::to_string).collect::<Vec<_>>().join(", ");
        let rotates = if family.rotates() { "yes" } else { "no" };
        table.add_row([family.name(), &rates, rotates, family.summary()]);
    }
    println!("{table}");
    for family in FAMILIES {
        for o in family.options() {
            println!("{} --option {}={} ({} to {}): {}", family.name(), o.name, o.default, o.min, o.max, o.help);
        }
    }
    Ok(ExitCode::SUCCESS)
}
