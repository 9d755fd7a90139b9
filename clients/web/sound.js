/**
 * The page's bell: two tones by the urgency, made by the browser, and a vibration where there is one.
 *
 * A browser plays nothing before the person has touched the page, and nothing says so: signing in is that touch.
 * `on` is the person's choice; it lives as long as the page.
 */

const PATTERNS = {
  critical: { tones: [880, 660, 880, 660, 880, 660], ms: 180, vibrate: [300, 120, 300, 120, 300, 120, 600] },
  high: { tones: [740, 590, 740], ms: 200, vibrate: [250, 120, 250] },
  normal: { tones: [660, 660], ms: 160, vibrate: [200] },
  low: { tones: [520], ms: 140, vibrate: [] },
};
const VOLUME = 0.25;

export class Bell {
  constructor() {
    this.on = true;
    this._context = null;
  }

  /** To be called inside a touch or a key press, so that the browser lets it sound later. */
  unlock() {
    try {
      this._context ??= new AudioContext();
      if (this._context.state === "suspended") this._context.resume().catch(() => {});
    } catch {
      this._context = null; // no sound on this machine: the sheet itself is the alert
    }
  }

  ring(priority) {
    if (!this.on) return;
    const pattern = PATTERNS[priority] ?? PATTERNS.normal;
    if (pattern.vibrate.length > 0) navigator.vibrate?.(pattern.vibrate);
    if (this._context?.state !== "running") return;
    let at = this._context.currentTime + 0.02;
    for (const tone of pattern.tones) {
      const oscillator = this._context.createOscillator();
      const gain = this._context.createGain();
      oscillator.frequency.value = tone;
      // A soft beginning and end: a switched tone clicks.
      gain.gain.setValueAtTime(0, at);
      gain.gain.linearRampToValueAtTime(VOLUME, at + 0.015);
      gain.gain.setValueAtTime(VOLUME, at + pattern.ms / 1000 - 0.03);
      gain.gain.linearRampToValueAtTime(0, at + pattern.ms / 1000);
      oscillator.connect(gain).connect(this._context.destination);
      oscillator.start(at);
      oscillator.stop(at + pattern.ms / 1000);
      at += pattern.ms / 1000 + 0.05;
    }
  }

  close() {
    this._context?.close().catch(() => {});
    this._context = null;
  }
}
