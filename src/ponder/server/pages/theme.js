// Before the page is drawn, so that it does not flash in the other colours.
try {
  const theme = localStorage.getItem("ponder.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch { /* storage is switched off: the system's theme it is */ }
