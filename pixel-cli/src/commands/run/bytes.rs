//! Numbers of bytes as they are written on the command line.

/// A number of bytes: `4096`, `500K`, `1.5G`, `2GiB`; K, M and G are powers of 1024.
pub(super) fn parse_bytes(text: &str) -> Result<usize, String> {
    let refuse = || format!("{text:?} is no number of bytes such as 4096, 500M or 1.5G");
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1u64,
        "K" | "KB" | "KIB" => 1 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1 << 30,
        _ => return Err(refuse()),
    };
    let bytes = number.parse::<f64>().map_err(|_| refuse())? * factor as f64;
    // Casts of floats end at the largest number.
    Ok(bytes.ceil() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_their_unit() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("3k", 3072),
            ("500M", 500 << 20),
            ("1.5 GiB", 3 << 29),
            ("2gb", 2 << 30),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1.2.3", "5X", "5 weights", "1e3"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
