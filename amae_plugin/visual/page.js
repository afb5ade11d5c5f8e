"use strict";
// A line over each spectrogram shows what is heard; a click into it plays from there. One sound plays at a time.
const players = [...document.querySelectorAll("audio")];
for (const player of players) {
  const figure = player.closest("figure");
  const picture = figure.querySelector(".inside");
  const cursor = figure.querySelector(".cursor");
  const scroller = figure.parentElement;
  const seconds = Number(picture.dataset.seconds);

  const show = () => {
    const share = Math.min(player.currentTime / seconds, 1);
    cursor.hidden = false;
    cursor.style.left = `${100 * share}%`;
    if (player.paused) return;
    if (scroller.scrollWidth > scroller.clientWidth) {
      scroller.scrollLeft = share * picture.clientWidth - 0.4 * scroller.clientWidth;
    }
    requestAnimationFrame(show);
  };
  player.addEventListener("play", () => {
    for (const other of players) if (other !== player) other.pause();
    show();
  });
  player.addEventListener("seeked", show);
  picture.addEventListener("click", (event) => {
    const box = picture.getBoundingClientRect();
    player.currentTime = Math.min(((event.clientX - box.left) / box.width) * seconds, player.duration);
    player.play().catch(() => {}); // another click was faster
  });
}
