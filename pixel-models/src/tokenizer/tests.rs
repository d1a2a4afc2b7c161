use super::fixtures::{byte_fallback, byte_level, tokenizer, word_piece};
use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

/// What the pieces of a stream are together, and how often there was one.
fn streamed(tokenizer: &TextTokenizer, tokens: &[u32]) -> (String, usize) {
    let mut stream = tokenizer.stream();
    let mut pieces = tokens.iter().map(|token| stream.push(*token).unwrap()).collect::<Vec<_>>();
    pieces.push(stream.finish().unwrap());
    (pieces.concat(), pieces.iter().filter(|piece| !piece.is_empty()).count())
}

#[test]
fn a_text_comes_back_with_and_without_its_special_tokens() {
    let tokenizer = tokenizer(&[("tokenizer.json", byte_level())]).unwrap();
    let bytes = "né!".bytes().map(u32::from).collect::<Vec<_>>();
    assert_eq!(tokenizer.encode_plain("né!").unwrap(), bytes);
    let with_bos = tokenizer.encode("né!").unwrap();
    assert_eq!(with_bos, [&[256], bytes.as_slice()].concat());
    assert_eq!(tokenizer.decode(&with_bos).unwrap(), "né!");
    assert_eq!(tokenizer.decode(&[u32::MAX]).unwrap(), "");
    assert_eq!(tokenizer.vocab_size(), 258);
}

#[test]
fn special_tokens_are_read_from_the_files_beside_the_tokenizer() {
    let names = json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}});
    let numbers = json!({"bos_token_id": 5, "eos_token_id": [6, 7]});
    let ids = |files: &[(&str, Value)]| {
        let tokenizer = tokenizer(&[&[("tokenizer.json", byte_level())], files].concat()).unwrap();
        (tokenizer.bos_id(), tokenizer.end_ids().to_vec(), tokenizer.added_bos())
    };
    assert_eq!(ids(&[]), (None, vec![], None));
    let config = ("tokenizer_config.json", names.clone());
    assert_eq!(ids(std::slice::from_ref(&config)), (Some(256), vec![257], Some(256)));
    assert_eq!(ids(&[("special_tokens_map.json", names)]), (Some(256), vec![257], Some(256)));
    assert_eq!(ids(&[("config.json", numbers.clone())]), (Some(5), vec![6, 7], None));
    assert_eq!(ids(&[("config.json", numbers), config]), (Some(256), vec![257, 6, 7], Some(256)));
    assert_eq!(ids(&[("tokenizer_config.json", json!({"bos_token": null, "eos_token": "absent"}))]).0, None);
}

#[test]
fn a_text_ends_at_the_tokens_of_every_file() {
    let ends = |config: Value, generation: Value| {
        let files = [
            ("tokenizer.json", byte_level()),
            ("tokenizer_config.json", json!({"eos_token": "</s>"})),
            ("config.json", json!({"eos_token_id": config})),
            ("generation_config.json", json!({"eos_token_id": generation})),
        ];
        tokenizer(&files).map(|tokenizer| tokenizer.end_ids().to_vec()).map_err(|error| error.to_string())
    };
    assert_eq!(ends(json!(9), json!([8, 257, 8])), Ok(vec![257, 8, 9]));
    assert_eq!(ends(json!([9, 8]), Value::Null), Ok(vec![257, 9, 8]));
    assert_eq!(ends(json!(-1), json!([])), Ok(vec![257]));
    for (value, shown) in [(json!("</s>"), "\"</s>\""), (json!([1.5]), "[1.5]"), (json!(1u64 << 32), "4294967296")] {
        let error = ends(value, Value::Null).unwrap_err();
        assert!(
            error.contains(&format!("config.json: field \"eos_token_id\" is {shown}: it must be a token")),
            "{error}"
        );
    }
}

#[test]
fn a_special_token_that_is_spelled_out_is_a_token_or_its_characters() {
    let tokenizer = tokenizer(&[("tokenizer.json", byte_level())]).unwrap();
    assert_eq!(tokenizer.encode_plain("a</s>").unwrap(), [0x61, 257]);
    let literal = tokenizer.literal();
    let characters = "a</s>".bytes().map(u32::from).collect::<Vec<_>>();
    assert_eq!(literal.encode_plain("a</s>").unwrap(), characters);
    assert_eq!(literal.encode("a</s>").unwrap(), [&[256], characters.as_slice()].concat());
    assert_eq!(literal.encode_to("a</s>", 4).unwrap(), [256, 0x61, 0x3C, 0x2F]);
    assert_eq!(tokenizer.text_of(257).as_deref(), Some("</s>"));
    assert_eq!((tokenizer.text_of(0x61).as_deref(), tokenizer.text_of(258)), (Some("a"), None));
}

#[test]
fn truncation_and_padding_of_the_file_are_off() {
    let tokenizer = tokenizer(&[("tokenizer.json", word_piece())]).unwrap();
    assert_eq!(tokenizer.encode("the cats the cats .").unwrap(), [2, 3, 4, 5, 3, 4, 5, 7]);
    assert_eq!(tokenizer.encode("the").unwrap(), [2, 3]);
}

#[test]
fn a_long_text_keeps_what_stands_around_it() {
    let tokenizer = tokenizer(&[("tokenizer.json", word_piece())]).unwrap();
    let text = "the cats the cats .";
    let whole = tokenizer.encode(text).unwrap();
    let around = whole.len() - tokenizer.encode_plain(text).unwrap().len();
    assert_eq!(tokenizer.encode_to(text, 100).unwrap(), whole);
    for limit in around..whole.len() {
        let cut = tokenizer.encode_to(text, limit).unwrap();
        assert_eq!(cut.len(), limit);
        // This tokenizer puts its one token in front.
        assert_eq!(cut, whole[..limit]);
    }
}

#[test]
fn a_stream_waits_for_a_whole_character() {
    let tokenizer = tokenizer(&[("tokenizer.json", byte_level())]).unwrap();
    let mut stream = tokenizer.stream();
    let mut push = |byte: u32| stream.push(byte).unwrap();
    assert_eq!(push(0x61), "a");
    assert_eq!([push(0xE2), push(0x82), push(0xAC)], ["", "", "€"]);
    assert_eq!([push(256), push(0xE2), push(0x20)], ["", "", "\u{FFFD} "]);
    assert_eq!(push(0xF0), "");
    assert_eq!(stream.finish().unwrap(), "\u{FFFD}");
}

#[test]
fn a_stream_waits_for_the_end_of_a_run_of_bytes() {
    let tokenizer = tokenizer(&[("tokenizer.json", byte_fallback())]).unwrap();
    let (a, byte) = (261, |byte: u32| 3 + byte);
    let mut stream = tokenizer.stream();
    // A newline is a byte in this vocabulary, and the byte after it spoils the run.
    let pieces = [a, byte(0x0A), byte(0xE2), a].map(|token| stream.push(token).unwrap());
    assert_eq!(pieces, ["a", "", "", "\u{FFFD}\u{FFFD} a"]);
    assert_eq!(stream.finish().unwrap(), "");
}

proptest! {
    #[test]
    fn the_pieces_of_a_text_are_the_text(text in "[ a-bé€😀\n]{0,40}") {
        for layout in [byte_level(), byte_fallback()] {
            let tokenizer = tokenizer(&[("tokenizer.json", layout)]).unwrap();
            let tokens = tokenizer.encode(&text).unwrap();
            let (pieces, count) = streamed(&tokenizer, &tokens);
            prop_assert_eq!(&pieces, &text);
            prop_assert!(count <= text.chars().count());
        }
    }

    #[test]
    fn the_pieces_of_any_tokens_are_what_decoding_all_gives(
        bytes in prop::collection::vec(prop_oneof![0u32..260, 0xE0u32..0xF8, 0x80u32..0x88], 0..30),
        pieces in prop::collection::vec(prop_oneof![0u32..265, 257u32..265, 131u32..135], 0..30),
        words in prop::collection::vec(0u32..13, 0..30),
    ) {
        for (layout, tokens) in [(byte_level(), bytes), (byte_fallback(), pieces), (word_piece(), words)] {
            let tokenizer = tokenizer(&[("tokenizer.json", layout)]).unwrap();
            prop_assert_eq!(streamed(&tokenizer, &tokens).0, tokenizer.decode(&tokens).unwrap());
        }
    }
}

#[test]
fn a_file_that_is_missing_or_broken_is_refused() {
    let missing = TextTokenizer::from_file("absent/tokenizer.json");
    assert!(matches!(missing, Err(ModelError::Io { .. })));
    let broken = tokenizer(&[("tokenizer.json", json!({"version": "1.0"}))]);
    assert!(matches!(broken, Err(ModelError::Tokenizer { path, .. }) if path.ends_with("tokenizer.json")));
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("tokenizer.json"), byte_level().to_string()).unwrap();
    fs::write(folder.path().join("tokenizer_config.json"), "{").unwrap();
    let broken = TextTokenizer::from_file(folder.path().join("tokenizer.json"));
    assert!(matches!(broken, Err(ModelError::Json { path, .. }) if path.ends_with("tokenizer_config.json")));
}
