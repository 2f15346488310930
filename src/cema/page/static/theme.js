// Before anything is painted: light or dark as this browser was told, so that the page does not change its colours.
try {
  const theme = localStorage.getItem("cema.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is refused: the system's preference holds.
}
