//! Estimates with their uncertainty.
//!
//! In: counts and figures. Out: a value and the interval that holds the truth in 95 of 100 such cases. Promises: pure
//! functions, the same inputs give the same outputs; too little to say anything gives nothing, never a zero.
//!
//! Shares: Wilson's interval. Quantiles: order statistics. Ratios: geometric means of the same kind of work, kind by
//! kind, weighted by how much of it both sides did. Ratios of quantiles: bootstrap within each kind, with a fixed seed.

/// Standard deviations of a 95 % interval.
const Z: f64 = 1.959_964;
/// Resamples of a bootstrap.
const RESAMPLES: usize = 200;

/// A value, and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// Lower end of the interval; absent: as low as can be.
    pub low: Option<f64>,
    /// Upper end; absent: as high as can be.
    pub high: Option<f64>,
    /// Samples of v3.
    pub samples: u64,
    /// Samples of v1 that it is held against.
    pub against: Option<u64>,
}

/// Figures of one kind of work, of v3 and of v1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stratum {
    /// v3's.
    pub new: Vec<f64>,
    /// v1's.
    pub old: Vec<f64>,
}

/// A share of `hits` in `all`.
#[must_use]
pub fn share(hits: u64, all: u64) -> Option<Estimate> {
    if all == 0 {
        return None;
    }
    let (n, p) = (all as f64, hits as f64 / all as f64);
    let scale = 1.0 + Z * Z / n;
    let middle = (p + Z * Z / (2.0 * n)) / scale;
    let half = Z / scale * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    // At the ends the interval ends exactly there.
    let low = if hits == 0 { 0.0 } else { middle - half };
    let high = if hits == all { 1.0 } else { middle + half };
    Some(Estimate {
        value: p,
        low: Some(low),
        high: Some(high),
        samples: all,
        against: None,
    })
}

/// The value below which 95 % lie.
#[must_use]
pub fn p95(values: &[f64]) -> Option<Estimate> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let value = quantile(&sorted)?;
    let middle = 0.95 * n as f64;
    let half = Z * (n as f64 * 0.95 * 0.05).sqrt();
    let low = (middle - half).floor() - 1.0;
    let high = (middle + half).ceil();
    let at = |rank: f64| (rank >= 0.0).then(|| sorted.get(rank as usize).copied())?;
    Some(Estimate {
        value,
        low: at(low),
        high: at(high),
        samples: n as u64,
        against: None,
    })
}

fn quantile(sorted: &[f64]) -> Option<f64> {
    let rank = (0.95 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.checked_sub(1)?).copied()
}

/// The mean.
#[must_use]
pub fn mean(values: &[f64]) -> Option<Estimate> {
    let (middle, variance) = moments(values)?;
    let half = Z * (variance / values.len() as f64).sqrt();
    let known = values.len() > 1;
    Some(Estimate {
        value: middle,
        low: known.then_some(middle - half),
        high: known.then_some(middle + half),
        samples: values.len() as u64,
        against: None,
    })
}

fn moments(values: &[f64]) -> Option<(f64, f64)> {
    if values.is_empty() {
        return None;
    }
    let n = values.len() as f64;
    let middle = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|it| (it - middle).powi(2)).sum();
    Some((middle, squares / (n - 1.0).max(1.0)))
}

/// v3 as a multiple of v1, over the kinds of work that both did at least twice.
#[must_use]
pub fn ratio(strata: &[Stratum]) -> Option<Estimate> {
    let logs = |values: &[f64]| -> Vec<f64> { values.iter().map(|it| it.ln()).collect() };
    let (mut weights, mut sum, mut variance) = (0.0, 0.0, 0.0);
    let (mut samples, mut against) = (0, 0);
    for kind in shared(strata) {
        let (new, old) = (logs(&kind.new), logs(&kind.old));
        let (Some((new_mean, new_var)), Some((old_mean, old_var))) = (moments(&new), moments(&old))
        else {
            continue;
        };
        let (n, m) = (new.len() as f64, old.len() as f64);
        let weight = n * m / (n + m);
        weights += weight;
        sum += weight * (new_mean - old_mean);
        variance += weight * weight * (new_var / n + old_var / m);
        samples += new.len() as u64;
        against += old.len() as u64;
    }
    if weights == 0.0 {
        return None;
    }
    let (middle, half) = (sum / weights, Z * variance.sqrt() / weights);
    Some(Estimate {
        value: middle.exp(),
        low: Some((middle - half).exp()),
        high: Some((middle + half).exp()),
        samples,
        against: Some(against),
    })
}

fn shared(strata: &[Stratum]) -> impl Iterator<Item = &Stratum> {
    strata
        .iter()
        .filter(|kind| kind.new.len() >= 2 && kind.old.len() >= 2)
}

/// v3's 95th percentile as a multiple of v1's, v1's kinds of work weighted as v3 did them.
#[must_use]
pub fn p95_ratio(strata: &[Stratum]) -> Option<Estimate> {
    let strata: Vec<&Stratum> = shared(strata).collect();
    let value = p95_ratio_of(
        strata
            .iter()
            .map(|kind| (kind.new.clone(), kind.old.clone())),
    )?;
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |from: &[f64]| -> Vec<f64> {
        (0..from.len())
            .map(|_| from[(next(&mut seed) % from.len() as u64) as usize])
            .collect()
    };
    let mut drawn: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            let kinds = strata.iter().map(|kind| (draw(&kind.new), draw(&kind.old)));
            p95_ratio_of(kinds)
        })
        .collect();
    drawn.sort_by(f64::total_cmp);
    let at = |share: f64| drawn.get((share * drawn.len() as f64) as usize).copied();
    let count = |of: fn(&Stratum) -> usize| strata.iter().map(|kind| of(kind) as u64).sum::<u64>();
    Some(Estimate {
        value,
        low: at(0.025),
        high: at(0.975),
        samples: count(|kind| kind.new.len()),
        against: Some(count(|kind| kind.old.len())),
    })
}

fn p95_ratio_of(kinds: impl Iterator<Item = (Vec<f64>, Vec<f64>)>) -> Option<f64> {
    let mut new = Vec::new();
    let mut old: Vec<(f64, f64)> = Vec::new();
    for (of_new, of_old) in kinds {
        let weight = of_new.len() as f64 / of_old.len() as f64;
        new.extend(of_new);
        old.extend(of_old.into_iter().map(|value| (value, weight)));
    }
    new.sort_by(f64::total_cmp);
    old.sort_by(|a, b| a.0.total_cmp(&b.0));
    let all: f64 = old.iter().map(|it| it.1).sum();
    let mut below = 0.0;
    let of_old = old.iter().find(|(_, weight)| {
        below += weight;
        below >= 0.95 * all - 1e-9
    })?;
    (of_old.0 > 0.0).then_some(quantile(&new)? / of_old.0)
}

/// SplitMix64.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: Option<f64>, expected: f64) -> bool {
        found.is_some_and(|found| (found - expected).abs() < 5e-4)
    }

    #[test]
    fn shares_agree_with_published_intervals() {
        // Wilson 1927, as computed by R's `prop.test(…, correct = FALSE)`.
        let ten = share(1, 10).unwrap();
        assert!(near(ten.low, 0.01788) && near(ten.high, 0.40415), "{ten:?}");
        let none = share(0, 1_000).unwrap();
        assert!(near(none.low, 0.0) && near(none.high, 0.00383), "{none:?}");
        let all = share(3, 3).unwrap();
        assert!(near(all.low, 0.43850) && near(all.high, 1.0), "{all:?}");
        assert_eq!(share(0, 0), None);
    }

    #[test]
    fn a_quantile_of_few_has_no_upper_end() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        let many = p95(&values).unwrap();
        assert_eq!((many.value, many.low, many.high), (95.0, Some(90.0), None));
        let more: Vec<f64> = (1..=1_000).map(f64::from).collect();
        let more = p95(&more).unwrap();
        assert!(more.low < Some(940.0) && more.high > Some(960.0) && more.high < Some(970.0));
        assert_eq!(p95(&[7.0]).unwrap().high, None);
        assert_eq!(p95(&[]), None);
    }

    #[test]
    fn like_is_held_against_like() {
        // v3 does the large ones, v1 the small ones: all together v3 looks ten times slower.
        let kinds = [
            Stratum {
                new: vec![100.0; 50],
                old: vec![100.0; 2],
            },
            Stratum {
                new: vec![1.0; 2],
                old: vec![1.0; 50],
            },
        ];
        assert!(near(ratio(&kinds).map(|it| it.value), 1.0));
        assert!(near(p95_ratio(&kinds).map(|it| it.value), 1.0));
        let strangers = [Stratum {
            new: vec![1.0; 50],
            old: vec![1.0],
        }];
        assert_eq!(ratio(&strangers), None);
        assert_eq!(p95_ratio(&strangers), None);
    }

    #[test]
    fn an_interval_holds_the_truth_about_as_often_as_it_says() {
        let mut seed = 7;
        let mut uniform = || (next(&mut seed) >> 11) as f64 / (1u64 << 53) as f64;
        let mut normal =
            || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
        let (mut ratios, mut shares) = (0, 0);
        for _ in 0..400 {
            let draw = |normal: &mut dyn FnMut() -> f64, shift: f64| -> Vec<f64> {
                (0..30).map(|_| (0.3 * normal() + shift).exp()).collect()
            };
            let kind = Stratum {
                new: draw(&mut normal, 0.2),
                old: draw(&mut normal, 0.0),
            };
            let found = ratio(&[kind]).unwrap();
            let truth = 0.2_f64.exp();
            ratios += u32::from(found.low < Some(truth) && Some(truth) < found.high);
        }
        for _ in 0..400 {
            let hits = (0..200).filter(|_| uniform() < 0.1).count() as u64;
            let found = share(hits, 200).unwrap();
            shares += u32::from(found.low < Some(0.1) && Some(0.1) < found.high);
        }
        // 380 of 400 are expected, with a deviation of 4.4.
        assert!((362..=398).contains(&ratios), "{ratios}");
        assert!((362..=398).contains(&shares), "{shares}");
    }
}
