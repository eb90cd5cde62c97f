//! A profile as a picture: a flame graph.
//!
//! In: a profile. Out: SVG that a browser shows without anything else: the outermost calls below, each as
//! wide as the share of samples it is in, coloured by stage. A click widens a call, `/` searches. Promise:
//! no name of a function becomes markup.
//!
//! Drawn here because the crate that would do it, inferno, is under a licence (CDDL) that the product
//! does not carry.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use dwcp_api::Stage;

use super::folded::Folded;
use super::names;
use super::record::Profile;
use super::stages;

const WIDTH: f64 = 1200.0;
const MARGIN: f64 = 10.0;
const ROW: f64 = 17.0;
const HEAD: f64 = 74.0;
/// What is narrower is not drawn.
const NARROWEST: f64 = 0.2;
/// Width of a letter.
const LETTER: f64 = 7.1;

/// One call and what it called.
#[derive(Default)]
struct Node {
    count: u64,
    calls: BTreeMap<u32, Node>,
}

impl Node {
    fn depth(&self) -> usize {
        let deepest = self.calls.values().map(Self::depth).max();
        1 + deepest.unwrap_or(0)
    }
}

fn tree(folded: &Folded) -> Node {
    let mut root = Node::default();
    for (path, count) in folded.stacks() {
        let mut at = &mut root;
        at.count += count;
        for number in path {
            at = at.calls.entry(*number).or_default();
            at.count += count;
        }
    }
    root
}

/// A colour for each stage; grey outside of all.
const fn colour(stage: Option<Stage>) -> &'static str {
    match stage {
        Some(Stage::Intake) => "#7fb3e6",
        Some(Stage::Stream) => "#86cfc4",
        Some(Stage::Codec) => "#f2a65e",
        Some(Stage::Transport) => "#c4a3e0",
        Some(Stage::Lanes) => "#92cc7a",
        Some(Stage::Decode) => "#f28b82",
        Some(Stage::Release) => "#e6d06c",
        Some(Stage::Engine) => "#d5bda3",
        None => "#c8c8c8",
    }
}

/// Text that is not markup.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            letter => out.push(letter),
        }
    }
    out
}

struct Drawing<'p> {
    folded: &'p Folded,
    total: u64,
    height: f64,
    out: String,
}

impl Drawing<'_> {
    fn node(&mut self, node: &Node, name: &str, from: u64, depth: usize, stage: Option<Stage>) {
        let scale = (WIDTH - 2.0 * MARGIN) / self.total.max(1) as f64;
        let (x, width) = (MARGIN + from as f64 * scale, node.count as f64 * scale);
        if width < NARROWEST {
            return;
        }
        let y = self.height - MARGIN - ROW * (depth as f64 + 1.0);
        let share = 100.0 * node.count as f64 / self.total.max(1) as f64;
        let clipped = clip(name, width);
        let opacity = if names::is_kernel(name) { 0.55 } else { 1.0 };
        let name = escape(name);
        let _ = writeln!(
            self.out,
            "<g class=\"f\"><title>{name} ({} samples, {share:.2} %)</title>\
             <rect x=\"{x:.2}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{:.1}\" fill=\"{}\" \
             fill-opacity=\"{opacity}\" rx=\"1\"/><text x=\"{:.2}\" y=\"{:.1}\">{}</text></g>",
            node.count,
            ROW - 1.0,
            colour(stage),
            x + 3.0,
            y + 12.0,
            escape(&clipped),
        );
        let mut from = from;
        for (number, call) in &node.calls {
            let name = self.folded.name(*number);
            let inside = stages::of_label(name).or(stage);
            self.node(call, name, from, depth + 1, inside);
            from += call.count;
        }
    }
}

/// As much of a name as fits.
fn clip(name: &str, width: f64) -> String {
    let room = ((width - 6.0) / LETTER).max(0.0) as usize;
    let letters = name.chars().count();
    match room {
        0..=2 => String::new(),
        _ if letters <= room => name.to_owned(),
        _ => name.chars().take(room - 2).chain("..".chars()).collect(),
    }
}

/// The picture.
#[must_use]
pub fn svg(profile: &Profile, title: &str) -> String {
    let folded = &profile.folded;
    let root = tree(folded);
    let height = HEAD + ROW * root.depth() as f64 + 2.0 * MARGIN;
    let mut drawing = Drawing {
        folded,
        total: root.count,
        height,
        out: String::new(),
    };
    let _ = writeln!(
        drawing.out,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"monospace\" font-size=\"12\">\n\
         <style>.f{{cursor:pointer}}.f:hover rect{{stroke:#000}}.hit rect{{fill:#e040fb}}\
         text{{pointer-events:none}}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fffdf8\"/>\n\
         <text x=\"{MARGIN}\" y=\"20\" font-size=\"15\">{}</text>\n\
         <text x=\"{MARGIN}\" y=\"38\">{}</text>",
        escape(title),
        escape(&facts(profile)),
    );
    legend(&mut drawing);
    drawing.node(&root, "all", 0, 0, None);
    drawing.out.push_str(SCRIPT);
    drawing.out.push_str("</svg>\n");
    drawing.out
}

/// What a reader must know to judge the picture.
fn facts(profile: &Profile) -> String {
    let mut text = format!(
        "{} samples in {:.1} s, {} a second of each thread's running time by {}; time asleep is not in it",
        profile.folded.total(),
        profile.duration.as_secs_f64(),
        profile.hz,
        profile.clock.as_str(),
    );
    if !profile.kernel {
        text.push_str("; time inside the kernel could not be seen");
    }
    if profile.lost > 0 {
        let _ = write!(text, "; {} samples lost", profile.lost);
    }
    text
}

fn legend(drawing: &mut Drawing<'_>) {
    let mut x = MARGIN;
    for (stage, count) in drawing.folded.by_stage() {
        let share = 100.0 * count as f64 / drawing.total.max(1) as f64;
        let text = format!("{stage} {share:.1} %");
        let _ = writeln!(
            drawing.out,
            "<rect x=\"{x:.0}\" y=\"48\" width=\"12\" height=\"12\" fill=\"{}\"/>\
             <text x=\"{:.0}\" y=\"58\">{text}</text>",
            colour(Some(stage)),
            x + 16.0,
        );
        x += 30.0 + LETTER * text.len() as f64;
    }
}

/// A click widens a call to the whole width, one on the lowest call goes back; `/` asks for a word and
/// marks the calls whose names have it.
const SCRIPT: &str = r#"<script><![CDATA[
(function () {
  var calls = Array.prototype.map.call(document.querySelectorAll('.f'), function (g) {
    var rect = g.querySelector('rect'), text = g.querySelector('text');
    var name = g.querySelector('title').textContent.replace(/ \([0-9]+ samples, .*$/, '');
    return { g: g, rect: rect, text: text, name: name,
      x: +rect.getAttribute('x'), w: +rect.getAttribute('width'), y: +rect.getAttribute('y') };
  });
  if (!calls.length) return;
  var all = calls[0];
  function widen(to) {
    calls.forEach(function (c) {
      var below = c.y > to.y && c.x <= to.x + 0.01 && c.x + c.w >= to.x + to.w - 0.01;
      var x = below ? all.x : all.x + (c.x - to.x) * all.w / to.w;
      var w = below ? all.w : c.w * all.w / to.w;
      var seen = below || (c.x >= to.x - 0.01 && c.x + c.w <= to.x + to.w + 0.01 && w > 0.2);
      c.g.style.display = seen ? '' : 'none';
      if (!seen) return;
      c.rect.setAttribute('x', x);
      c.rect.setAttribute('width', w);
      c.text.setAttribute('x', x + 3);
      var room = Math.floor((w - 6) / 7.1);
      c.text.textContent = room < 3 ? '' : c.name.length <= room ? c.name : c.name.slice(0, room - 2) + '..';
    });
  }
  calls.forEach(function (c) { c.g.addEventListener('click', function () { widen(c); }); });
  window.addEventListener('keydown', function (event) {
    if (event.key !== '/') return;
    event.preventDefault();
    var word = window.prompt('Function');
    calls.forEach(function (c) {
      c.g.setAttribute('class', word && c.name.indexOf(word) >= 0 ? 'f hit' : 'f');
    });
  });
})();
]]></script>
"#;

#[cfg(test)]
mod tests {
    use super::super::event::Clock;
    use super::super::folded::tests::read;
    use super::*;
    use std::time::Duration;

    fn profile(stacks: &str) -> Profile {
        Profile {
            folded: read(stacks),
            clock: Clock::CpuClock,
            kernel: true,
            hz: 99,
            duration: Duration::from_secs(2),
            lost: 0,
        }
    }

    #[test]
    fn a_call_is_as_wide_as_its_share_and_lies_on_its_caller() {
        let stacks = "w;[codec];encode;zstd 30\nw;[lanes];poll 60\nw;[codec];encode 10";
        let picture = svg(&profile(stacks), "t");
        let rect = |name: &str| -> (f64, f64, f64) {
            let line = picture
                .lines()
                .find(|line| line.contains(&format!("<title>{name} (")))
                .unwrap();
            let field = |key: &str| -> f64 {
                let rest = line.split(&format!(" {key}=\"")).nth(1).unwrap();
                rest.split('"').next().unwrap().parse().unwrap()
            };
            (field("x"), field("width"), field("y"))
        };
        let (all, codec, encode, zstd, poll) = (
            rect("all"),
            rect("[codec]"),
            rect("encode"),
            rect("zstd"),
            rect("poll"),
        );
        let share = |part: (f64, f64, f64)| part.1 / all.1;
        for (part, expected) in [(codec, 0.4), (encode, 0.4), (zstd, 0.3), (poll, 0.6)] {
            assert!((share(part) - expected).abs() < 0.001, "{part:?}");
        }
        assert!((encode.0 - codec.0).abs() < 0.01 && (codec.2 - encode.2 - ROW).abs() < 0.01);
        assert!(poll.0 + poll.1 <= codec.0 + 0.01 || codec.0 + codec.1 <= poll.0 + 0.01);
        assert!(picture.contains("codec 40.0 %") && picture.contains("lanes 60.0 %"));
    }

    #[test]
    fn names_become_no_markup() {
        let picture = svg(&profile("w;<script>alert(1)</script>&\"' 1"), "<b>");
        assert!(!picture.contains("<script>alert") && !picture.contains("<b>"));
        assert!(picture.contains("&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#39;"));
        assert_eq!(picture.matches("<script>").count(), 1, "our own");
    }

    #[test]
    fn what_was_not_seen_is_said() {
        let mut profile = profile("w 1");
        assert!(!facts(&profile).contains("lost"));
        (profile.lost, profile.kernel) = (7, false);
        let text = facts(&profile);
        assert!(text.contains("7 samples lost") && text.contains("kernel could not be seen"));
        assert!(svg(&self::profile(""), "none").contains("0 samples"));
    }
}
