// Words for what has none: beside an icon that the mouse is on, or the keyboard.

const WITH_WORDS = "[data-tip], .icon[aria-label]";
const GAP = 6; // pixels
const STAY_MS = 150; // for the mouse to go from the icon to its words

/** Show the words of each icon, `data-tip` or its label, from now on. */
export function showTooltips() {
  const tip = document.getElementById("tooltip");
  let shown = null;
  let leaving = null;

  const hide = () => {
    clearTimeout(leaving);
    if (shown) tip.hidePopover();
    shown = null;
  };

  const show = (target) => {
    clearTimeout(leaving);
    if (target === shown) return;
    hide();
    tip.textContent = target.dataset.tip ?? target.ariaLabel;
    tip.showPopover(); // above dialogs too
    shown = target;
    put();
  };

  const put = () => {
    const place = shown.getBoundingClientRect();
    const { width, height } = tip.getBoundingClientRect();
    const left = place.left + place.width / 2 - width / 2;
    const below = place.bottom + GAP + height <= innerHeight;
    tip.style.left = `${Math.max(GAP, Math.min(left, document.documentElement.clientWidth - width - GAP))}px`;
    tip.style.top = `${below ? place.bottom + GAP : place.top - GAP - height}px`;
  };

  const on = (kind, action) => document.addEventListener(kind, action, { capture: true, passive: true });
  on("pointerover", ({ target, pointerType }) => {
    if (pointerType === "touch") return;
    const icon = tip.contains(target) ? shown : target.closest?.(WITH_WORDS);
    clearTimeout(leaving);
    if (icon) show(icon);
    else if (shown) leaving = setTimeout(hide, STAY_MS);
  });
  on("focusin", ({ target }) => target.matches(WITH_WORDS) && target.matches(":focus-visible") && show(target));
  for (const kind of ["focusout", "click"]) on(kind, hide);
  on("scroll", () => shown && (shown.matches(":focus-visible") ? put() : hide())); // what gets the focus scrolls into sight
  on("keydown", ({ key }) => key === "Escape" && hide());
}
