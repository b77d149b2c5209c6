//! The colors, on a light and on a dark background.

use std::fmt::Write;

use plotters::style::RGBColor;

/// What a color is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Color {
    Paper,
    Ink,
    Grid,
    First,
    Second,
    Third,
    /// For what is many and stays in the background.
    Faint,
}

impl Color {
    const ALL: [Self; 7] =
        [Self::Paper, Self::Ink, Self::Grid, Self::First, Self::Second, Self::Third, Self::Faint];

    /// On a light, and on a dark background. No two colors are the same on a light one: they tell what a color is for.
    fn variants(self) -> [u32; 2] {
        match self {
            Self::Paper => [0xFF_FF_FF, 0x15_18_1C],
            Self::Ink => [0x1B_1F_24, 0xE6_E8_EB],
            Self::Grid => [0xDD_E0_E4, 0x34_3A_42],
            Self::First => [0x0B_62_C4, 0x6C_B2_FF],
            Self::Second => [0xC2_45_0C, 0xFF_9A_5C],
            Self::Third => [0x12_7A_46, 0x5F_D3_97],
            Self::Faint => [0xA9_C1_DE, 0x3C_55_75],
        }
    }

    pub(super) fn light(self) -> RGBColor {
        let [_, red, green, blue] = self.variants()[0].to_be_bytes();
        RGBColor(red, green, blue)
    }
}

/// The style sheet's rules that turn the colors for a dark background.
pub(crate) fn dark_rules() -> String {
    let mut rules = String::new();
    for color in Color::ALL {
        let [light, dark] = color.variants();
        for attribute in ["fill", "stroke"] {
            // Writing to a String cannot fail.
            let _ = writeln!(rules, "svg [{attribute}=\"#{light:06X}\"] {{ {attribute}: #{dark:06X} }}");
        }
    }
    rules
}
