//! Handwritten digits, 1797 images of 8 × 8 pixels; `SOURCE.md` says where they come from.

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::shuffle::permutation;

/// What `scripts/make_digits.py` wrote: for each image its pixels, row by row, then its digit.
static RECORDS: &[u8] = include_bytes!("digits.bin");

/// Pixels of an image.
pub(crate) const PIXELS: usize = 64;

/// Different digits.
pub(crate) const CLASSES: usize = 10;

/// The value of a pixel that is ink throughout: each counts a block of 4 × 4.
const FULL: f32 = 16.0;

/// One image in this many is for testing.
const TEST_PART: usize = 5;

/// The seed of the split.
const SPLIT_SEED: u64 = 0;

/// Images with their digits, on a device.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    /// From 0 (paper) to 1 (ink), `[images, PIXELS]`.
    pub pixels: Tensor<2>,
    /// From 0 to 9, `[images]`.
    pub digits: Tensor<1, Int>,
}

impl Images {
    /// The records of the given numbers, in that order.
    fn from_records(numbers: &[usize], device: &Device) -> Self {
        let (records, _) = RECORDS.as_chunks::<{ PIXELS + 1 }>();
        let chosen = || numbers.iter().map(|&number| &records[number]);
        let pixels: Vec<f32> = chosen().flat_map(|r| &r[..PIXELS]).map(|&pixel| f32::from(pixel) / FULL).collect();
        let digits: Vec<i32> = chosen().map(|record| i32::from(record[PIXELS])).collect();
        Self {
            pixels: Tensor::from_data(TensorData::new(pixels, [numbers.len(), PIXELS]), device),
            digits: Tensor::from_data(TensorData::new(digits, [numbers.len()]), device),
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.digits.dims()[0]
    }

    /// Those of the given positions, in that order.
    pub(crate) fn select(&self, positions: &[usize]) -> Self {
        let positions: Vec<i32> = positions.iter().map(|&position| position as i32).collect();
        let count = positions.len();
        let positions = Tensor::<1, Int>::from_data(TensorData::new(positions, [count]), &self.pixels.device());
        Self {
            pixels: self.pixels.clone().select(0, positions.clone()),
            digits: self.digits.clone().select(0, positions),
        }
    }
}

/// The data set: a shuffled split, 1438 images to learn from and 359 to test on.
///
/// The same people wrote both parts, as is customary for this set; digits of other people are recognised less well.
#[derive(Clone, Debug)]
pub(crate) struct Digits {
    /// What the model learns from.
    pub train: Images,
    /// What it is measured on.
    pub test: Images,
}

impl Digits {
    /// The data set on a device.
    pub(crate) fn load(device: &Device) -> Self {
        let order = permutation(RECORDS.len() / (PIXELS + 1), SPLIT_SEED);
        let (test, train) = order.split_at(order.len() / TEST_PART);
        Self { train: Images::from_records(train, device), test: Images::from_records(test, device) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Images of each digit, as `SOURCE.md` lists them.
    const COUNTS: [usize; CLASSES] = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180];

    #[test]
    fn the_file_holds_the_known_number_of_each_digit() {
        let (records, rest) = RECORDS.as_chunks::<{ PIXELS + 1 }>();
        assert_eq!((records.len(), rest.len()), (1797, 0));
        let mut counts = [0; CLASSES];
        records.iter().for_each(|record| counts[usize::from(record[PIXELS])] += 1);
        assert_eq!(counts, COUNTS);
    }

    #[test]
    fn no_pixel_is_more_than_full() {
        let (records, _) = RECORDS.as_chunks::<{ PIXELS + 1 }>();
        let brightest = records.iter().flat_map(|record| &record[..PIXELS]).max();
        assert_eq!(brightest, Some(&16));
    }

    #[test]
    fn the_first_image_is_a_zero() {
        let (records, _) = RECORDS.as_chunks::<{ PIXELS + 1 }>();
        assert_eq!(records[0][8..16], [0, 0, 13, 15, 10, 15, 5, 0]);
        assert_eq!(records[0][PIXELS], 0);
    }

    #[test]
    #[cfg(feature = "flex")]
    fn the_parts_hold_every_image_once() {
        let digits = Digits::load(&Device::flex());
        assert_eq!((digits.train.len(), digits.test.len()), (1438, 359));
        let mut counts = [0; CLASSES];
        for part in [digits.train, digits.test] {
            part.digits.into_data().iter::<i64>().for_each(|digit| counts[digit as usize] += 1);
        }
        assert_eq!(counts, COUNTS);
    }

    #[test]
    #[cfg(feature = "flex")]
    fn a_selection_keeps_images_and_digits_together() {
        let images = Images::from_records(&[0, 1, 2], &Device::flex());
        let chosen = images.select(&[2, 0]);
        assert_eq!(chosen.digits.into_data().iter::<i64>().collect::<Vec<_>>(), [2, 0]);
        let pixels = chosen.pixels.into_data().try_to_vec::<f32>().unwrap();
        let (records, _) = RECORDS.as_chunks::<{ PIXELS + 1 }>();
        assert_eq!(pixels[2], f32::from(records[2][2]) / 16.0);
        assert_eq!(pixels[PIXELS + 2], f32::from(records[0][2]) / 16.0);
    }
}
