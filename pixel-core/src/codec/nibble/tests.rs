use super::*;
use crate::codec::bits::Field;
use crate::math::rotation::split_mix;
use crate::matrix::Shape;
use proptest::prelude::*;

/// Every number of nibbles that a codec has, with a window.
const WINDOWS: [(usize, Windows); 10] = [
    (2, Windows::Grouped),
    (3, Windows::Grouped),
    (8, Windows::Grouped),
    (2, Windows::Lapped { span: 32 }),
    (3, Windows::Lapped { span: 24 }),
    (4, Windows::Lapped { span: 16 }),
    (5, Windows::Lapped { span: 8 }),
    (5, Windows::Lapped { span: 40 }),
    (6, Windows::Lapped { span: 64 }),
    (8, Windows::Lapped { span: 16 }),
];

fn layout((per_eight, windows): (usize, Windows), d_output: usize, d_input: usize) -> NibbleLayout {
    NibbleLayout { shape: Shape::new(d_output, d_input).unwrap(), per_eight, windows }
}

#[test]
fn windows_begin_where_the_formula_says() {
    let starts = |per_eight, windows| {
        let layout = layout((per_eight, windows), 1, 16);
        (0..2 * per_eight).map(|t| layout.start(t)).collect::<Vec<_>>()
    };
    let lapped = Windows::Lapped { span: 16 };
    assert_eq!(starts(3, Windows::Grouped), [0, 0, 0, 8, 8, 8]);
    assert_eq!(starts(3, lapped), [0, 2, 5, 8, 10, 13]);
    assert_eq!(starts(4, lapped), [0, 2, 4, 6, 8, 10, 12, 14]);
    assert_eq!(starts(5, lapped), [0, 1, 3, 4, 6, 8, 9, 11, 12, 14]);
    let period = |per_eight| layout((per_eight, lapped), 1, 8).period();
    assert_eq!([2, 3, 4, 5, 6, 8].map(period), [1, 3, 1, 5, 3, 1]);
}

#[test]
fn the_nibbles_that_reach_a_column_are_those_whose_windows_hold_it() {
    for windows in WINDOWS {
        let layout = layout(windows, 1, 203);
        for col in 0..203 {
            let holds = |t: &usize| (layout.start(*t)..layout.start(*t) + layout.span()).contains(&col);
            let expected: Vec<usize> = (0..layout.fields()).filter(holds).collect();
            assert_eq!(layout.reaching(col).collect::<Vec<_>>(), expected, "{windows:?}, column {col}");
            assert!(col + 1 < layout.span() || expected.len() == layout.depth(), "{windows:?}, column {col}");
        }
    }
}

proptest! {
    #[test]
    fn a_run_of_columns_is_the_sum_of_the_patterns_that_reach_it(
        windows in prop::sample::select(WINDOWS.to_vec()),
        d_output in 1usize..70, d_input in 1usize..150, run in (0usize..19, 1usize..150), seed in any::<u64>(),
    ) {
        let layout = layout(windows, d_output, d_input);
        let words: Vec<u32> = (0..layout.num_words()).map(|i| split_mix(seed, i as u64) as u32).collect();
        // Whole numbers, so that sums are exact.
        let values = (0..layout.dictionary_len()).map(|i| (split_mix(!seed, i as u64) % 4096) as f32 - 2048.0);
        let dictionary: Vec<f32> = values.collect();
        let first = run.0.min((d_input - 1) / EIGHT) * EIGHT;
        let columns = first..(first + run.1).min(d_input);
        for row in [0, d_output / 2, d_output - 1] {
            let mut found = vec![f32::NAN; columns.len()];
            layout.decode_columns(&words, &dictionary, row, columns.clone(), &mut found);
            let expected: Vec<f32> = columns.clone().map(|col| {
                let term = |t: usize| {
                    let Field { word, shift, .. } = layout.field(row, t);
                    let code = (words[word] >> shift & 15) as usize;
                    dictionary[(t % layout.period() * PATTERNS + code) * layout.span() + col - layout.start(t)]
                };
                layout.reaching(col).map(term).sum()
            }).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn the_order_of_a_file_comes_back(
        windows in prop::sample::select(WINDOWS.to_vec()),
        d_output in 1usize..70, d_input in 1usize..70, seed in any::<u64>(),
    ) {
        let layout = layout(windows, d_output, d_input);
        let rows = StoredRows { shape: layout.shape, per_eight: layout.per_eight };
        let mut stored = vec![0; d_output * rows.row_words()];
        for row in 0..d_output {
            for eight in 0..layout.eights() {
                rows.write(&mut stored, row, eight, split_mix(seed, (row * 100 + eight) as u64) as u32);
            }
        }
        let words = layout.arrange(&stored);
        for (row, t) in (0..d_output).flat_map(|row| (0..layout.fields()).map(move |t| (row, t))) {
            let Field { word, shift, .. } = layout.field(row, t);
            prop_assert_eq!((words[word] >> shift & 15) as usize, rows.read_one(&stored, row, t));
        }
        prop_assert_eq!(layout.stored_order(&words), stored);
    }
}
