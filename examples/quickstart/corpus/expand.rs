//! The syntax of templates, separate from what their slots mean.

/// A piece of a template.
#[derive(Debug, PartialEq)]
pub(super) enum Piece<'a> {
    /// Text that stands as it is.
    Text(&'a str),
    /// `{slot}`: the name between the braces.
    Slot(&'a str),
    /// `[a|b]`: the alternatives, templates themselves.
    Choice(Vec<&'a str>),
}

/// The pieces of a template, in order.
///
/// # Panics
/// If a bracket is not closed: templates are part of the program.
pub(super) fn pieces(template: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some(open) = rest.find(['[', '{']) {
        let (text, group) = rest.split_at(open);
        let end = closing(group).unwrap_or_else(|| panic!("unclosed bracket in `{template}`"));
        let inner = &group[1..end];
        pieces.push(Piece::Text(text));
        pieces.push(match group.starts_with('[') {
            true => Piece::Choice(alternatives(inner)),
            false => Piece::Slot(inner),
        });
        rest = &group[end + 1..];
    }
    pieces.push(Piece::Text(rest));
    pieces
}

/// Where the bracket that opens `group` closes.
fn closing(group: &str) -> Option<usize> {
    with_depth(group).find_map(|(at, _, depth)| (depth == 0).then_some(at))
}

/// Splits at the bars that stand in no inner bracket.
fn alternatives(inner: &str) -> Vec<&str> {
    let bars = with_depth(inner).filter(|&(_, c, depth)| c == '|' && depth == 0);
    let mut start = 0;
    let mut parts = Vec::new();
    for (at, _, _) in bars {
        parts.push(&inner[start..at]);
        start = at + 1;
    }
    parts.push(&inner[start..]);
    parts
}

/// Each character with its place and the number of brackets open after it.
fn with_depth(text: &str) -> impl Iterator<Item = (usize, char, usize)> {
    text.char_indices().scan(0_usize, |depth, (at, c)| {
        match c {
            '[' | '{' => *depth += 1,
            ']' | '}' => *depth = depth.checked_sub(1)?,
            _ => {}
        }
        Some((at, c, *depth))
    })
}

/// The text with its first letter, after quotation marks if any, in upper case.
pub(super) fn capitalised(text: &str) -> String {
    match text.char_indices().find(|(_, c)| c.is_alphabetic()) {
        Some((at, first)) => {
            let after = at + first.len_utf8();
            format!("{}{}{}", &text[..at], first.to_uppercase(), &text[after..])
        }
        None => text.to_string(),
    }
}

/// The text behind "a" or "an".
pub(super) fn with_article(text: &str) -> String {
    let sounds_open = text.starts_with(['a', 'e', 'i', 'o', 'u']) || text.starts_with("honest");
    format!("{} {text}", if sounds_open { "an" } else { "a" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternatives_may_nest_and_be_empty() {
        let nested = pieces("a [b [c|d]|{e}|] f");
        assert_eq!(nested, [Piece::Text("a "), Piece::Choice(vec!["b [c|d]", "{e}", ""]), Piece::Text(" f"),]);
    }

    #[test]
    fn a_capital_goes_behind_quotation_marks() {
        assert_eq!(capitalised("\"{is it\""), "\"{Is it\"");
        assert_eq!(capitalised("..."), "...");
    }

    #[test]
    fn an_article_fits_the_sound() {
        assert_eq!(with_article("honest owl"), "an honest owl");
        assert_eq!(with_article("hollow owl"), "a hollow owl");
    }
}
